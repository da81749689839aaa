package fs

import (
	"bytes"
	"cmp"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"lockfs/lockengine"
)

// seconds is a number of seconds in JSON, printed with six decimals.
type seconds int64 // nanoseconds

func (s seconds) MarshalJSON() ([]byte, error) { return []byte(decimal(int64(s))), nil }

func ptr[T any](v T) *T { return &v }

var modeNames = [...]string{lockengine.Shared: "shared", lockengine.Exclusive: "exclusive"}

// lockJSON is a line of view/locks.jsonl.
type lockJSON struct {
	Class     string    `json:"class"`
	State     string    `json:"state"`
	Mode      string    `json:"mode"`
	Path      string    `json:"path"`
	Start     *uint64   `json:"start,omitempty"`
	End       *lastByte `json:"end,omitempty"`
	PID       int32     `json:"pid"`
	TID       int32     `json:"tid"`
	UID       uint32    `json:"uid"`
	GID       uint32    `json:"gid"`
	Command   string    `json:"command"`
	Container string    `json:"container,omitempty"`
	Since     seconds   `json:"since"`
	Seconds   seconds   `json:"seconds"`
	Name      string    `json:"name,omitempty"`
	Token     uint64    `json:"token,omitempty"`
	Kind      string    `json:"kind,omitempty"`
	Expiry    *seconds  `json:"expiry,omitempty"`
	Left      *seconds  `json:"left,omitempty"`
	Blockers  []int32   `json:"blockers,omitempty"`
}

// lastByte is the inclusive end of a range; the end of the file is null.
type lastByte uint64

func (e lastByte) MarshalJSON() ([]byte, error) {
	if uint64(e) == lockengine.MaxEnd {
		return []byte("null"), nil
	}
	return strconv.AppendUint(nil, uint64(e)-1, 10), nil
}

// describer turns locks into lines for a reader; it remembers paths and
// processes, of which there are fewer than locks.
type describer struct {
	s *Server
	reader
	now       lockengine.Instant
	paths     map[string]string
	processes map[int32]process
}

// process is what is told of a running process; all zero, but for pid, of one
// that is gone.
type process struct {
	pid       int32 // as the reader knows it
	command   string
	container string
	start     int64 // boot time
}

func (s *Server) describer(now lockengine.Instant, r reader) *describer {
	return &describer{s: s, reader: r, now: now, paths: map[string]string{}, processes: map[int32]process{}}
}

// path is where in the mount the thing locked is.
func (d *describer) path(class lockengine.Class, name string) string {
	if class == lockengine.Named {
		return "tlock/" + name
	}
	p, ok := d.paths[name]
	if !ok {
		p = d.s.filePath(name)
		d.paths[name] = p
	}
	return p
}

// process is the one a lock was granted to. It is gone also if its number is
// another's now.
func (d *describer) process(who lockengine.Who, since lockengine.Instant) process {
	p, ok := d.processes[who.PID]
	if !ok {
		p.pid = d.space.pid(who.PID, d.now)
		if st, runs := statOf(who.PID); runs {
			p.command, p.container, p.start = printable(st.comm), containerOf(cgroupOf(who.PID)), st.start
		}
		d.processes[who.PID] = p
	}
	if p.start > since.Boot {
		return process{pid: d.space.pid(who.PID, since)}
	}
	return p
}

func (d *describer) held(l *lockengine.Lock) lockJSON {
	j := d.common(l.Class, l.Name, l.Mode, l.Range, l.Who, l.Since)
	j.State = "held"
	if l.Class == lockengine.Named {
		j.Name, j.Token, j.Kind = l.Name, l.Token, metaValue(l.Meta, "kind")
		if c := metaValue(l.Meta, "command"); c != "" {
			j.Command, _, _ = strings.Cut(c, " ")
		}
		j.Container = metaValue(l.Meta, "container")
		if l.Timeout != 0 {
			j.Expiry, j.Left = ptr(seconds(l.Expiry.Wall)), ptr(seconds(max(0, l.Expiry.Boot-d.now.Boot)))
		}
	}
	return j
}

func (d *describer) waiting(w *lockengine.Waiting, blockers []*lockengine.Lock) lockJSON {
	j := d.common(w.Class, w.Name, w.Mode, w.Range, w.Who, w.Since)
	j.State = "waiting"
	if w.Class == lockengine.Named {
		j.Name, j.Kind = w.Name, metaValue(w.Meta, "kind")
	}
	for _, l := range blockers {
		if pid := d.process(l.Who, l.Since).pid; !slices.Contains(j.Blockers, pid) {
			j.Blockers = append(j.Blockers, pid)
		}
	}
	return j
}

func (d *describer) common(class lockengine.Class, name string, mode lockengine.Mode, rng lockengine.Range,
	who lockengine.Who, since lockengine.Instant) lockJSON {
	p := d.process(who, since)
	j := lockJSON{
		Class: class.String(), Mode: modeNames[mode], Path: d.path(class, name),
		PID: p.pid, TID: d.space.pid(who.TID, since), UID: who.UID, GID: who.GID, Command: p.command, Container: p.container,
		Since: seconds(since.Wall), Seconds: seconds(max(0, d.now.Boot-since.Boot)),
	}
	if class == lockengine.Record {
		j.Start, j.End = ptr(rng.Start), ptr(lastByte(rng.End))
	}
	return j
}

// describeAll describes all locks of one state for a reader, the held ones first.
// They are not kept: many would take much memory.
func (s *Server) describeAll(c caller, tell func(lockJSON)) {
	var d *describer
	s.engine.Each(
		func(now lockengine.Instant) { d = s.describer(now, s.readerOf(c)) },
		func(l *lockengine.Lock) { tell(d.held(l)) },
		func(w *lockengine.Waiting, blockers []*lockengine.Lock) { tell(d.waiting(w, blockers)) })
}

func renderLocksJSON(s *Server, _ node, c caller, w io.Writer) (err error) {
	enc := json.NewEncoder(w)
	enc.SetEscapeHTML(false)
	s.describeAll(c, func(j lockJSON) {
		if !s.showsToken(c.uid, j.UID) {
			j.Token = 0
		}
		if err == nil {
			err = enc.Encode(j)
		}
	})
	return err
}

func renderLocks(s *Server, _ node, c caller, w io.Writer) error {
	t := newTable()
	defer t.rows.free()
	s.describeAll(c, t.add)
	return t.print(w)
}

// columns are those of view/locks.
var columns = [...]string{"CLASS", "STATE", "MODE", "START", "END", "PID", "USER", "COMMAND", "CONTAINER", "FOR", "LEFT", "PATH"}

const containerColumn = 8

// table prints locks for people, like lslocks(8); with a column for containers
// when there is anything in it. Its rows are written twice: how wide the columns
// are is only known when all rows are.
type table struct {
	users  map[uint32]string // their names
	rows   longText          // each row with its length before it, and so each cell in it
	widths [len(columns)]int
	boxed  bool
	cells  []byte // of the last row, to be used again
}

func newTable() *table {
	t := &table{users: map[uint32]string{}}
	t.row(columns)
	return t
}

func (t *table) add(j lockJSON) {
	t.boxed = t.boxed || j.Container != ""
	t.row(j.cells(t.users))
}

func (t *table) row(cells [len(columns)]string) {
	t.cells = t.cells[:0]
	for i, cell := range cells {
		t.widths[i] = max(t.widths[i], utf8.RuneCountInString(cell))
		t.cells = append(binary.AppendUvarint(t.cells, uint64(len(cell))), cell...)
	}
	_, _ = t.rows.Write(binary.AppendUvarint(nil, uint64(len(t.cells))))
	_, _ = t.rows.Write(t.cells)
}

func (t *table) print(w io.Writer) error {
	rows, err := t.rows.reader()
	if err != nil {
		return err
	}
	var line []byte
	for {
		n, err := binary.ReadUvarint(rows)
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
		rest := make([]byte, n)
		if _, err := io.ReadFull(rows, rest); err != nil {
			return err
		}
		var cells [len(columns)]string
		for i := range cells {
			n, at := binary.Uvarint(rest)
			cells[i], rest = string(rest[at:at+int(n)]), rest[at+int(n):]
		}
		line = appendCells(line[:0], cells, t.widths, t.boxed)
		if _, err := w.Write(line); err != nil {
			return err
		}
	}
}

// appendCells appends a line of the table; but for the last one, cells are
// padded.
func appendCells(b []byte, cells [len(columns)]string, widths [len(columns)]int, boxed bool) []byte {
	const last = len(columns) - 1
	for i, cell := range cells[:last] {
		if i == containerColumn && !boxed {
			continue
		}
		b = append(b, cell...)
		for range widths[i] + 2 - utf8.RuneCountInString(cell) {
			b = append(b, ' ')
		}
	}
	b = append(b, cells[last]...)
	return append(b, '\n')
}

// cells are the lock's line in the table. users remembers their names.
func (j *lockJSON) cells(users map[uint32]string) [len(columns)]string {
	if users[j.UID] == "" {
		users[j.UID] = userName(j.UID)
	}
	start, end, left := "-", "-", "-"
	if j.Start != nil {
		start, end = strconv.FormatUint(*j.Start, 10), j.End.String()
	}
	if j.Left != nil {
		left = people(time.Duration(*j.Left))
	}
	return [len(columns)]string{
		j.Class, j.State, j.Mode, start, end, strconv.Itoa(int(j.PID)), users[j.UID], cmp.Or(j.Command, "-"),
		cmp.Or(j.Container, "-"), people(time.Duration(j.Seconds).Truncate(time.Second)), left, j.Path,
	}
}

func (e lastByte) String() string {
	if uint64(e) == lockengine.MaxEnd {
		return "EOF"
	}
	return strconv.FormatUint(uint64(e)-1, 10)
}

// writeLine prints a lock of one file or one process.
func writeLine(w io.Writer, j lockJSON, withPath bool) {
	var b bytes.Buffer
	fmt.Fprintf(&b, "%s %s", j.State, j.Mode)
	switch {
	case j.Start != nil:
		fmt.Fprintf(&b, " %d-%s", *j.Start, j.End)
	case j.Class == "flock":
		b.WriteString(" flock")
	}
	fmt.Fprintf(&b, " pid %d uid %d for %s", j.PID, j.UID, people(time.Duration(j.Seconds).Truncate(time.Second)))
	if j.Command != "" {
		fmt.Fprintf(&b, " command %s", j.Command)
	}
	if j.Container != "" {
		fmt.Fprintf(&b, " container %s", j.Container)
	}
	if withPath {
		fmt.Fprintf(&b, " path %s", j.Path)
	}
	b.WriteByte('\n')
	_, _ = w.Write(b.Bytes())
}

func renderStats(s *Server, _ node, c caller, w io.Writer) error {
	st := s.engine.Stats()
	var b bytes.Buffer
	for _, c := range lockengine.Classes {
		n := c.String()
		fmt.Fprintf(&b, "held_%s %d\nwaiting_%s %d\ngranted_%s %d\nreleased_%s %d\nrefused_%s %d\nwaited_%s %d\ncanceled_%s %d\n",
			n, st.Held[c], n, st.Waiting[c], n, st.Granted[c], n, st.Released[c], n, st.Refused[c], n, st.Waited[c], n, st.Canceled[c])
	}
	fmt.Fprintf(&b, "expired %d\nforced %d\ndeadlocks %d\npossible_deadlocks %d\nover_quota %d\nevents %d\nhandles %d\nnodes %d\nnodes_pinned %d\nnames %d\nuptime %d\nrestarts %d\n",
		st.Expired, st.Forced, st.Deadlocks, st.Possible, st.OverQuota, st.Events,
		s.files.NumHandles()+s.handles.count(), s.files.NumNodes(), s.dynamic.pinned()+s.files.NumPinned(), s.dynamic.count(),
		(s.now().Boot-s.started.Boot)/int64(time.Second), s.instance.restarts)
	if s.showsToken(c.uid, 0) {
		fmt.Fprintf(&b, "last_token %d\n", st.LastToken)
	}
	if s.host.journal != nil {
		j := s.host.journal.Stats()
		fmt.Fprintf(&b, "journal_log_bytes %d\njournal_snapshot_bytes %d\njournal_records %d\njournal_syncs %d\njournal_compactions %d\n",
			j.Log, j.Snapshot, j.Appends, j.Syncs, j.Compactions)
	}
	_, err := w.Write(b.Bytes())
	return err
}

// lockDetail is tlock/NAME/json.
type lockDetail struct {
	Name      string         `json:"name"`
	Token     uint64         `json:"token,omitempty"`
	Start     int64          `json:"tstart"`
	Since     seconds        `json:"since"`
	Age       seconds        `json:"age"`
	Timeout   *seconds       `json:"timeout,omitempty"`
	Expiry    *seconds       `json:"expiry,omitempty"`
	Left      *seconds       `json:"left,omitempty"`
	Kind      string         `json:"kind"`
	UID       uint32         `json:"uid"`
	User      string         `json:"user"`
	GID       uint32         `json:"gid"`
	PID       int32          `json:"pid"`
	Alive     *bool          `json:"alive,omitempty"` // absent: unknown
	Command   string         `json:"command,omitempty"`
	PPID      int64          `json:"ppid,omitempty"`
	PCommand  string         `json:"pcommand,omitempty"`
	LoginUID  *uint64        `json:"loginuid,omitempty"`
	Unit      string         `json:"unit,omitempty"`
	Container string         `json:"container,omitempty"`
	Host      string         `json:"host,omitempty"`
	Note      string         `json:"note"`
	Status    string         `json:"status"`
	Waiters   []waiterDetail `json:"waiters"`
}

type waiterDetail struct {
	PID     int32   `json:"pid"`
	UID     uint32  `json:"uid"`
	Waited  seconds `json:"waited"`
	Command string  `json:"command"`
}

func renderLockJSON(v *lockView) string {
	space := v.space()
	lines := v.meta(space)
	meta := func(key string) string { return metaValue(lines, key) }
	ppid, _ := strconv.ParseInt(meta("ppid"), 10, 64)
	d := lockDetail{
		Name: v.Name, Token: v.Token, Start: v.Start, Since: seconds(v.Since.Wall), Age: seconds(v.age()),
		Kind: v.kind(), UID: v.Who.UID, User: userName(v.Who.UID), GID: v.Who.GID, PID: space.pid(v.Who.PID, v.Since),
		Command: meta("command"), PPID: ppid, PCommand: meta("pcommand"),
		Unit: meta("unit"), Container: meta("container"), Host: meta("host"), Note: v.Note,
		Status: strings.TrimSuffix(renderStatus(v), "\n"), Waiters: []waiterDetail{},
	}
	if live := v.alive(); live != "unknown" {
		d.Alive = ptr(live == "yes")
	}
	if !v.s.showsToken(v.to.uid, v.Who.UID) {
		d.Token = 0
	}
	if uid, err := strconv.ParseUint(meta("loginuid"), 10, 32); err == nil {
		d.LoginUID = &uid
	}
	if v.Timeout != 0 {
		d.Timeout, d.Expiry, d.Left = ptr(seconds(v.Timeout)), ptr(seconds(v.Expiry.Wall)), ptr(seconds(v.left()))
	}
	for _, w := range v.waiting() {
		d.Waiters = append(d.Waiters, waiterDetail{space.pid(w.Who.PID, w.Since), w.Who.UID, seconds(v.waited(w)), commandLine(w.Who.PID)})
	}
	b, err := json.Marshal(d)
	if err != nil {
		return err.Error() + "\n"
	}
	return string(printableJSON(b)) + "\n"
}
