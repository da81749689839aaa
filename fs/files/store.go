package files

// A file without names cannot be opened by a successor, and a file whose mode forbids it cannot be opened again by
// anyone but root. The descriptors of such handles are given to Config.Store, before the name goes or the OPEN is
// answered.

// shelter stores the handles of a file that may be about to lose its last name, and has those that are opened from
// now on stored too. Whether another name is left is not asked: it may go at the same time.
func (f *FS) shelter(file ident) {
	if f.store == nil || file == nothing {
		return
	}
	f.mu.Lock()
	n := f.idents[file]
	if n == nil {
		f.mu.Unlock()
		return
	}
	n.sheltered = true
	var hs []*handle
	for h := range n.handles {
		if !h.stored && h.fd >= 0 {
			h.stored = true
			h.users++ // so that RELEASE drops it from the store after it was put there
			hs = append(hs, h)
		}
	}
	f.mu.Unlock()
	for _, h := range hs {
		f.put(h)
		f.drop(h)
	}
}

// mustStore says whether a handle has to be given to the store before it is entered. Needs mu.
func (f *FS) mustStore(h *handle) bool {
	return f.store != nil && !h.stored && (f.storeAll || h.node.sheltered)
}

func (f *FS) put(h *handle) {
	if err := f.store.Put(h.fh, h.fd); err != nil && !f.storeFailed.Swap(true) {
		f.log.Error("descriptors cannot be kept: files that are deleted while open are lost if this process is killed",
			"error", err)
	}
}
