package fsm

import (
	"iter"

	"github.com/tidwall/btree"
)

// A tree is an ordered set of T, copied in constant time: both copies share
// nodes until one of them writes. It is the only container in a State that
// grows, so that Snapshot costs the same however long the queue is.
//
// What an item points to must never change once it is in a tree: it would
// change in every snapshot too. Replace the item instead.
type tree[T any] struct {
	items *btree.BTreeG[T]
	// written is where the last item was set: most are set behind it. Only who
	// may write uses it.
	written *btree.PathHint
}

func newTree[T any](less func(a, b T) bool) tree[T] {
	// A State is not for concurrent use, so its trees need no locks.
	return tree[T]{btree.NewBTreeGOptions(less, btree.Options{NoLocks: true}), new(btree.PathHint)}
}

func (t tree[T]) copy() tree[T]       { return tree[T]{t.items.Copy(), new(btree.PathHint)} }
func (t tree[T]) len() int            { return t.items.Len() }
func (t tree[T]) get(key T) (T, bool) { return t.items.Get(key) }
func (t tree[T]) has(key T) bool      { _, ok := t.items.Get(key); return ok }
func (t tree[T]) remove(key T)        { t.items.Delete(key) }
func (t tree[T]) first() (T, bool)    { return t.items.Min() }
func (t tree[T]) last() (T, bool)     { return t.items.Max() }

// set puts an item in, and returns the one in whose place it is.
func (t tree[T]) set(item T) (old T, replaced bool) { return t.items.SetHint(item, t.written) }

func (t tree[T]) all() iter.Seq[T] { return t.items.Scan }
func (t tree[T]) from(key T) iter.Seq[T] {
	return func(yield func(T) bool) { t.items.Ascend(key, yield) }
}
