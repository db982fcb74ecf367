// The token tree: nodes that hold the keys and values of their tokens, for every layer and KV head.
//
// Node 0 is the root (the policy); its KV is computed once and only referred to, so it may be mapped
// from a file. Not thread-safe: one thread at a time grows a tree.
#pragma once

#include <cstdint>
#include <vector>

#include "isa/kernels.h"
#include "runtime/memory.h"

namespace aegis {

struct Node {
  int parent;
  int start;          // position of its first token: the length of its ancestors
  int n;              // tokens
  int room;           // tokens it may grow to, n at least
  const uint16_t* k;  // [layers, kv_heads, ceil(room / 16), d / 2, 16, 2], after rotary
  const uint16_t* v;  // [layers, kv_heads, ceil(room / 2), d, 2]
};

// Elements of one (layer, KV head) of a node's keys and values.
inline size_t key_size(int n, int d) { return static_cast<size_t>((n + 15) / 16 * 16) * static_cast<size_t>(d); }
inline size_t value_size(int n, int d) { return static_cast<size_t>((n + 1) / 2 * 2) * static_cast<size_t>(d); }

class Tree {
 public:
  // The root's KV stays the caller's and must outlive the tree. n == 0: an empty root.
  Tree(const uint16_t* k, const uint16_t* v, int n) { nodes_.push_back({{-1, 0, n, n, k, v}, {}}); }

  int size() const { return static_cast<int>(nodes_.size()); }
  const Node& node(int i) const { return nodes_[static_cast<size_t>(i)].node; }

  // Adds a node of n tokens, which may grow to `room`, and whose KV (planes = layers * kv_heads) is still to be
  // written.
  int add(int parent, int n, int room, int planes, int d) {
    const Arena::Mark before = arena_.mark();
    const size_t k = static_cast<size_t>(planes) * key_size(room, d);
    const size_t v = static_cast<size_t>(planes) * value_size(room, d);
    auto* memory = reinterpret_cast<uint16_t*>(arena_.allocate((k + v) * sizeof(uint16_t)));
    const Node& p = node(parent);
    nodes_.push_back({{parent, p.start + p.n, n, room, memory, memory + k}, before});
    return size() - 1;
  }

  // Makes a node without children n tokens long, n <= room; the KV of what is new is still to be written.
  void resize(int i, int n) { nodes_[static_cast<size_t>(i)].node.n = n; }

  // Keeps the first `count` nodes (>= 1).
  void truncate(int count) {
    if (count >= size()) return;
    arena_.rewind(nodes_[static_cast<size_t>(count)].before);
    nodes_.resize(static_cast<size_t>(count));
  }

 private:
  struct Entry {
    Node node;
    Arena::Mark before;  // of the arena, before this node
  };
  std::vector<Entry> nodes_;
  Arena arena_;
};

}  // namespace aegis
