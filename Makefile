# make run     builds lockfs and mounts it at ./locks, until Ctrl-C
# make test    installs what the tests need where it can, then runs them all
# make build   the static binary: ./bin/lockfs
# make fuzz    gives each parser, and the server, inputs of any kind, FUZZTIME each
# make soak    100,000 takes by 16 processes, and SECONDS=600 of simulation
# make lint    gofmt, go vet, staticcheck
# make clean

VERSION := $(shell git describe --tags --always --dirty 2>/dev/null || echo devel)
STATICCHECK := honnef.co/go/tools/cmd/staticcheck@v0.8.2

# What the integration tests run: each program, and the Debian package it is in.
PROGRAMS := flock:util-linux unshare:util-linux setpriv:util-linux perl:perl python3:python3 sqlite3:sqlite3 \
	git:git busybox:busybox-static dash:dash timeout:coreutils stress-ng:stress-ng fusermount3:fuse3 podman:podman runc:runc gcc:gcc find:findutils diff:diffutils tar:tar
PERL_MODULES := File/FcntlLock.pm:libfile-fcntllock-perl

# How long each fuzz target runs; one that fails leaves its input in testdata/fuzz.
FUZZTIME ?= 30s
# For how long make soak simulates.
SECONDS ?= 600

.PHONY: all build run test deps fuzz soak lint clean

all: build

build:
	CGO_ENABLED=0 go build -trimpath -ldflags '-s -w -X main.version=$(VERSION)' -o bin/lockfs ./cmd/lockfs

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

test: deps
	go vet ./...
	LOCKFS_SIM_SECONDS=20 go test -race ./lockengine/... ./fs/... ./cmd/...
	cd packaging/container && go test ./...
	go test -race -count=1 -timeout 20m ./integration/...

# Installs what is missing, where that is possible; else says what to install.
deps:
	@missing=; \
	for p in $(PROGRAMS); do \
		PATH="$$PATH:/usr/sbin:/sbin" command -v "$${p%%:*}" >/dev/null || missing="$$missing $${p#*:}"; \
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

lint:
	@unformatted=$$(gofmt -l .); test -z "$$unformatted" || { echo "not formatted, run gofmt -w:" $$unformatted; exit 1; }
	go vet ./...
	go run $(STATICCHECK) ./...

clean:
	rm -rf bin
