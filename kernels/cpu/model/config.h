// Shape of a Llama-shaped decoder.
#pragma once

#include <vector>

namespace aegis {

struct Config {
  int layers = 0, hidden = 0, heads = 0, kv_heads = 0, head_dim = 0, intermediate = 0, vocab = 0, context = 0;
  int rows = 0;  // label rows of the verdict head
  float norm_eps = 1e-5f;
  int hadamard_block = 0;                // of down's input; 0: none
  float rope_scale = 1.0f;               // factor on cos and sin (yarn); 1 elsewhere
  std::vector<float> inverse_frequency;  // rotary, [head_dim / 2]

  int q_size() const { return heads * head_dim; }
  int kv_size() const { return kv_heads * head_dim; }
  int group() const { return heads / kv_heads; }

  // Throws std::invalid_argument where the kernels can not take the shape.
  void check() const;
};

}  // namespace aegis
