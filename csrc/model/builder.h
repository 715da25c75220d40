// Builds a Model tensor by tensor: each tensor given is checked, packed into its format on all threads, and can then be
// let go, so loading never holds more than the packed model and a block of source rows. Weights that a file holds in
// the packed form are used where they lie; pack() makes that form.
#pragma once

#include <map>
#include <memory>
#include <string>
#include <vector>

#include "base/cpu_limits.h"
#include "base/file_mapping.h"
#include "base/fork_mutex.h"
#include "formats/source_rows.h"
#include "model/model.h"

namespace gemlet {

// Bytes of memory that a model takes, by use.
struct MemoryPlan {
  int64_t weights = 0;      // all matrices and vectors but the embedding
  int64_t embedding = 0;    // the token embedding, and the output head where it is another matrix; of those on disk
                            // what is resident at a time
  int64_t kv_cache = 0;     // of one sequence as long as the context
  int64_t activations = 0;  // of a forward pass over a full chunk of a prompt (bidirectional: a text), its logits
  int64_t on_disk = 0;      // the per-layer table, and the embedding if it is on disk
};

class PanelScratch;

class ModelBuilder {
 public:
  // Allocates all weights, unless they come from a file or go to one (`allocate` false: no add() then). `formats` names
  // matrices with a format of their own. With `embedding_on_disk` the embedding and the output head, which have to come
  // from a mapped file, are read through a small window of it and do not stay resident. Throws kConfig for a bad
  // configuration, kMemory if they do not fit, kInvalidRequest if `formats` names something that is no matrix of this
  // model. Without a backend it allocates nothing and can only plan().
  ModelBuilder(ModelConfig config, Format weights, Format embedding, KvFormat kv_format,
               std::unique_ptr<Backend> backend, bool allocate = true, std::map<std::string, Format> formats = {},
               bool embedding_on_disk = false);

  // The per-layer table is taken to be of `table_type` in its file.
  // For a pass on `threads` threads; 0: as many as the backend has, or as this machine would get.
  MemoryPlan plan(SourceType table_type = SourceType::kBf16, int threads = 0);

  struct Slot {
    std::vector<int64_t> shape;  // [rows, cols] of a matrix; of a vector (kept as f32) as the checkpoint has it
    Matrix* matrix = nullptr;    // null: a vector
    const float** vector = nullptr;
    uint8_t* storage = nullptr;  // null: not allocated
    float offset = 0;            // added to a vector's values
    float neutral = 0;           // what random vectors vary around
    bool routed = false;         // an expert: a token reads only some of them
    int64_t rows_filled = 0;     // a vector is one row
    int64_t rows() const { return matrix ? shape[0] : 1; }
    int64_t values() const;
    // Of `count` rows (a multiple of 16 but at the end) in packed form, whole cache lines.
    int64_t packed_bytes(int64_t count) const;
    bool filled() const { return rows_filled == rows(); }
  };
  std::map<std::string, Slot> slots();

  // Fills a slot: a whole tensor, or the next rows of a matrix (a multiple of 16 but at the end),
  // so that a large table passes through a small buffer. Blocks whose values the slot's format has keep every bit, all
  // others are converted. Throws kTensor for an unknown name, a wrong shape, rows out of turn, or values that are not
  // finite in the slot's format; kModelFile if the file cannot be read.
  void add(const std::string& name, const SourceRows& source, int64_t first_row = 0);

  // Bytes of the packed form of so many rows of a slot, or of all if it has fewer; 0 if there is no such slot.
  int64_t packed_bytes(const std::string& name, int64_t rows);
  // add(), but the packed form goes to `out`, packed_bytes(), and the slot is not filled by it:
  // nothing is kept. What is written, row after row, is what use_packed() takes.
  void pack(const std::string& name, const SourceRows& source, int64_t first_row, uint8_t* out);

  // The file that use_packed() speaks of; the model keeps it mapped.
  void map_file(int descriptor, const std::string& path);
  // Fills a slot with packed values that lie in the mapped file, as they are. Throws kTensor for an unknown name,
  // another size than the slot has, or a place that is not in the file or not at a multiple of 64. The values are not
  // looked at: no bit pattern makes an access go wrong, but a NaN among the scales makes the results NaN.
  void use_packed(const std::string& name, int64_t offset, int64_t bytes);

  // The per-layer embedding table, which stays in its file. Throws kTensor if the model has none or the shape is wrong.
  void set_per_layer_table(RowTable table);
  bool needs_per_layer_table() const { return config_.per_layer_input_size > 0; }

  // Fills every empty slot with random values of the size trained weights have.
  void add_random(uint64_t seed);

  // Throws kTensor if a slot is empty. The builder is spent afterwards.
  std::unique_ptr<Model> finish();

 private:
  void accept_per_layer_table(RowTable table);
  template <typename ReadRows>
  void fill(const std::string& name, const Slot& slot, int64_t first_row, int64_t row_count, const ReadRows& read_rows,
            uint8_t* out);
  template <typename PackRows>
  void fill_panels(const std::string& name, const Matrix& matrix, int64_t first_row, int64_t row_count,
                   const PackRows& pack_rows, uint8_t* out);
  Slot& find(const std::string& name);
  void pack_rows(const std::string& name, Slot& slot, const SourceRows& source, int64_t first_row, uint8_t* out);
  void set_storage(Slot& slot, const uint8_t* storage);
  void declare_layer(const std::string& at, const LayerConfig& config, LayerWeights& weights);
  void declare_experts(const std::string& at, const LayerConfig& config, ExpertWeights& weights);
  void declare_altup(const std::string& at, AltupWeights& weights);
  void declare_matrix(const std::string& name, int64_t rows, int64_t cols, Format format, Matrix* matrix);
  void declare_norm(const std::string& name, int64_t dim, const float** norm);
  uint8_t* allocate(int64_t bytes);
  void check_can_fill() const;
  void declare_vector(const std::string& name, std::vector<int64_t> shape, float neutral, const float** vector);

  ModelConfig config_;
  Format weight_format_;
  KvFormat kv_format_;
  std::unique_ptr<Backend> backend_;
  ModelWeights weights_;
  std::vector<AlignedBuffer> storage_;
  std::shared_ptr<const FileMapping> mapping_;
  const bool allocate_;
  const std::map<std::string, Format> formats_;
  std::map<std::string, Slot> slots_;
  std::shared_ptr<PanelScratch> rows_scratch_, raw_scratch_;  // of rows as float32, and as they are in the file
  bool finished_ = false;
  const int64_t available_bytes_ = available_memory();
  int64_t promised_bytes_ = 0;  // to the buffers so far: the system would grant memory that it does not have
  ForkMutex mutex_;             // calls from several threads take turns
};

}  // namespace gemlet
