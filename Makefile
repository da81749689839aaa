# make run     builds lockfs and mounts it at ./locks, until Ctrl-C
# make test    installs what the tests need where it can, then runs them all
# make build   the static binary: ./bin/lockfs
# make release binaries, .deb and .rpm for $(ARCHS): ./dist
# make fuzz    gives each parser, and the server, inputs of any kind, FUZZTIME each
# make soak    100,000 takes by 16 processes, and SECONDS=600 of simulation
# make bench   what locks cost, beside the kernel's and other servers': ten minutes; BENCH=PATTERN measures some rows only
# make profile where lockfs spends its time with what make bench measures: for the compiler, in cmd/lockfs/default.pgo
# make lint    gofmt, go vet, staticcheck
# make clean

# The commit, and what it is called: by its tag, as dpkg and rpm want it, or by its time.
COMMIT := $(shell git describe --always --exclude='*' --abbrev=12 --dirty 2>/dev/null)
VERSION := $(or $(shell git describe --tags --dirty 2>/dev/null | sed 's/^v//; s/-/+/g'),$(shell \
	TZ=UTC git log -1 --date=format-local:%Y%m%d%H%M%S --format=0+git%cd 2>/dev/null),0+devel)
# The time of all files in the packages.
SOURCE_DATE_EPOCH ?= $(or $(shell git log -1 --format=%ct 2>/dev/null),0)
ARCHS := amd64 arm64
FORMATS := deb rpm

# The same source gives the same bytes, wherever it is.
GO_BUILD := CGO_ENABLED=0 go build -trimpath -buildvcs=false -ldflags '-s -w -X main.version=$(VERSION) -X main.revision=$(COMMIT)'

STATICCHECK := honnef.co/go/tools/cmd/staticcheck@v0.8.2
NFPM := github.com/goreleaser/nfpm/v2/cmd/nfpm@v2.43.4

# What the integration tests run and compile: each program, header and module, and the Debian package it is in.
PROGRAMS := flock:util-linux unshare:util-linux setpriv:util-linux perl:perl python3:python3 sqlite3:sqlite3 \
	git:git busybox:busybox-static dash:dash timeout:coreutils stress-ng:stress-ng fusermount3:fuse3 podman:podman runc:runc gcc:gcc find:findutils diff:diffutils tar:tar \
	man:man-db systemd-analyze:systemd
HEADERS := fuse3/fuse_lowlevel.h:libfuse3-dev stdio.h:libc6-dev
PERL_MODULES := File/FcntlLock.pm:libfile-fcntllock-perl

# How long each fuzz target runs; one that fails leaves its input in testdata/fuzz.
FUZZTIME ?= 30s
# For how long make soak simulates.
SECONDS ?= 600

.PHONY: all build release run test deps fuzz soak bench profile lint clean

all: build

build:
	$(GO_BUILD) -o bin/lockfs ./cmd/lockfs

release: export SOURCE_DATE_EPOCH := $(SOURCE_DATE_EPOCH)
release: export VERSION := $(VERSION)
release: build
	rm -rf dist
	mkdir -p dist/share
	cp README.md packaging/tlock.conf packaging/lockfs@.service packaging/man/* dist/share/
	gzip -9n dist/share/*.[158]
	for shell in bash zsh fish; do bin/lockfs completion $$shell > dist/share/lockfs.$$shell || exit 1; done
	for arch in $(ARCHS); do GOOS=linux GOARCH=$$arch $(GO_BUILD) -o dist/$$arch/lockfs ./cmd/lockfs || exit 1; done
	find dist -type d -exec chmod 755 {} + -o -type f -exec chmod 644 {} + -exec touch -d @$(SOURCE_DATE_EPOCH) {} +
	chmod 755 dist/*/lockfs
	for arch in $(ARCHS); do for format in $(FORMATS); do \
		ARCH=$$arch CGO_ENABLED=0 go run -trimpath $(NFPM) package --config packaging/nfpm.yaml --packager $$format --target dist/ || exit 1; \
	done; done

run: build
	@mkdir -p locks 2>/dev/null || true # fails on a dead mount, which is replaced
	@printf '%s\n' 'Mounting lockfs at ./locks until Ctrl-C. In another shell, try:' \
		'    cat   locks/README' \
		'    mkdir locks/tlock/backup+5m       # take the lock "backup" for five minutes' \
		'    cat   locks/tlock/backup/status   # who holds it, and for how long' \
		'    rmdir locks/tlock/backup          # release it' \
		'    flock locks/files/x sleep 60 &    # locks of any program...' \
		'    cat   locks/view/locks            # ... can be looked at'
	@exec bin/lockfs mount --state .locks-state locks

# What is not built for the race detector is built in one way, so that nothing is built twice; what is, without the
# profile of default.pgo, for which all of Go's own packages would be built once more. The manifests are checked while the
# integration tests wait.
test: deps
	CGO_ENABLED=0 go vet -trimpath ./...
	go test -race -pgo=off ./lockengine/... ./fs/... ./cmd/...
	(cd packaging/container && CGO_ENABLED=0 nice go test -trimpath ./...) & manifests=$$!; \
		go test -race -count=1 -timeout 20m ./integration/... && wait $$manifests

# Installs what is missing, where that is possible; else says what to install.
deps:
	@missing=; \
	for p in $(PROGRAMS); do \
		PATH="$$PATH:/usr/sbin:/sbin" command -v "$${p%%:*}" >/dev/null || missing="$$missing $${p#*:}"; \
	done; \
	for h in $(HEADERS); do \
		test -e "/usr/include/$${h%%:*}" || missing="$$missing $${h#*:}"; \
	done; \
	for m in $(PERL_MODULES); do \
		/usr/bin/perl -e "require '$${m%%:*}'" 2>/dev/null || missing="$$missing $${m#*:}"; \
	done; \
	missing=$$(printf '%s\n' $$missing | sort -u | tr '\n' ' '); \
	if test -z "$${missing% }"; then :; \
	elif test "$$(id -u)" -eq 0 && command -v apt-get >/dev/null; then \
		apt-get update && DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends $$missing; \
	else \
		echo "The tests need these Debian packages: $$missing" >&2; \
		echo "Install them: sudo apt-get install -y --no-install-recommends $$missing" >&2; \
		exit 1; \
	fi
	@$(MAKE) -s bin/promtool
	@test -e /dev/fuse || { modprobe fuse 2>/dev/null; test -e /dev/fuse; } || \
		{ echo "The tests mount FUSE filesystems, but there is no /dev/fuse: modprobe fuse, or give the container --device /dev/fuse --cap-add SYS_ADMIN" >&2; exit 1; }

# Out of its package, which would start a Prometheus.
bin/promtool:
	@mkdir -p bin; \
	if promtool=$$(command -v promtool); then ln -s "$$promtool" $@; exit; fi; \
	command -v apt-get >/dev/null || { echo "The tests need promtool, of Prometheus: put it in the PATH" >&2; exit 1; }; \
	dir=$$(mktemp -d) && trap 'rm -rf "$$dir"' EXIT && cd "$$dir" && \
	{ apt-get -qq -o APT::Sandbox::User=root download prometheus 2>/dev/null || \
		{ apt-get update && apt-get -o APT::Sandbox::User=root download prometheus; }; } && \
	dpkg-deb --fsys-tarfile prometheus_*.deb | tar -xO ./usr/bin/promtool >promtool && chmod +x promtool && mv promtool $(CURDIR)/$@

fuzz:
	@for p in $$(go list ./...); do \
		for f in $$(go test -list '^Fuzz' $$p | grep '^Fuzz'); do \
			echo "$$p $$f"; \
			go test -run '^$$' -fuzz "^$$f\$$" -fuzztime $(FUZZTIME) -fuzzminimizetime 20x -parallel 1 $$p || exit 1; \
		done; \
	done

# The figures that take too long for every run.
soak: deps
	LOCKFS_LONG=1 go test -count=1 -timeout 20m -run TestTokensGrow ./integration/
	LOCKFS_SIM_SECONDS=$(SECONDS) go test -count=1 -timeout 0 -v -run 'TestSimulation$$' ./fs/

# Some rows only, those whose names BENCH matches, are printed and not written.
bench: deps
	go run ./integration/bench -rows '$(BENCH)' -out integration/bench/results

profile: deps
	go run ./integration/bench -steady 8s -profile cmd/lockfs/default.pgo

lint:
	@unformatted=$$(gofmt -l .); test -z "$$unformatted" || { echo "not formatted, run gofmt -w:" $$unformatted; exit 1; }
	go vet ./...
	go run $(STATICCHECK) ./...

clean:
	rm -rf bin dist
