// Shape of a decoder: Llama's, and what others have beyond it.
#pragma once

#include <vector>

namespace aegis {

struct Config {
  int layers = 0, hidden = 0, heads = 0, kv_heads = 0, head_dim = 0, intermediate = 0, vocab = 0, context = 0;
  int rows = 0;  // label rows of the verdict head
  float norm_eps = 1e-5f;
  int hadamard_block = 0;                  // of down's input; 0: none
  std::vector<float> rope_scale = {1.0f};  // of each rotary table: factor on cos and sin (yarn); 1 elsewhere
  std::vector<float> inverse_frequency;    // rotary, [tables, head_dim / 2]

  // Beyond Llama; the defaults are Llama's.
  bool gelu = false;         // the MLP's gate by GELU (tanh formula) and not SiLU
  bool qk_norm = false;      // RMSNorm of each head of q and k before rotary
  bool out_norms = false;    // RMSNorm of what attention and MLP give
  float softcap = 0.0f;      // attention scores become softcap * tanh(score / softcap); 0: none
  int input_block = 0;       // Hadamard transform before qkv and gate_up; 0: none
  std::vector<int> windows;  // of each layer, tokens that a token sees, itself included; 0, or empty: all
  std::vector<int> rope_of;  // of each layer, its rotary table; empty: the first

  int window(int layer) const { return windows.empty() ? 0 : windows[static_cast<size_t>(layer)]; }
  int rope(int layer) const { return rope_of.empty() ? 0 : rope_of[static_cast<size_t>(layer)]; }
  int q_size() const { return heads * head_dim; }
  int kv_size() const { return kv_heads * head_dim; }
  int group() const { return heads / kv_heads; }

  // Throws std::invalid_argument where the kernels can not take the shape.
  void check() const;
};

}  // namespace aegis
