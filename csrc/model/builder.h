// Builds a Model tensor by tensor. All threads check each tensor and pack it into its format. Then the caller can free
// it. So loading never needs memory for more than the packed model and a block of source rows. Weights that a file
// holds in packed form are used in place; pack() makes that form.
#pragma once

#include <functional>
#include <map>
#include <memory>
#include <set>
#include <string>
#include <vector>

#include "base/cpu_limits.h"
#include "base/file_mapping.h"
#include "base/fork_mutex.h"
#include "formats/source_rows.h"
#include "model/balance.h"
#include "model/memory_plan.h"
#include "model/model.h"

namespace gemlet {

class PanelScratch;

// The purpose of a builder.
enum class BuildMode : uint8_t {
  kAllocate,  // it allocates all weights, and add() fills them
  kFiles,     // the weights are in a file (use_packed()) or are written to one (pack()); add() cannot be called
  kPlan,      // only plan() can be called
};

class ModelBuilder {
 public:
  // `formats` names matrices that have another format than `weights`. With `embedding_on_disk`, the embedding and the
  // output head must come from a mapped file; they are read through a small window of it and do not stay in memory.
  // `towers` are weights that the forward pass of the text model does not use. `rounded` names the matrices of the text
  // model whose inputs and outputs are rounded with fixed scales. Each of these has a slot "..._rounding" for the two
  // scales of StaticRounding. Throws kConfig for a bad configuration, kMemory if the weights do not fit,
  // kInvalidRequest if `formats` or `rounded` names something that is not a matrix of this model, and kUnsupported for
  // a matrix that the backend cannot multiply by.
  ModelBuilder(ModelConfig config, Format weights, Format embedding, KvFormat kv_format,
               std::shared_ptr<Backend> backend, BuildMode mode = BuildMode::kAllocate,
               std::map<std::string, Format> formats = {}, bool embedding_on_disk = false,
               const std::map<std::string, TensorSpec>& towers = {}, std::set<std::string> rounded = {});

  // Plans the memory of the model. `table_type` is the type of the per-layer table in its file. `threads` is the number
  // of threads of a pass. 0 means the number that the backend has, or, if the builder only plans, the number that this
  // machine would use.
  MemoryPlan plan(SourceType table_type = SourceType::kBf16, int threads = 0);

  struct Slot {
    std::vector<int64_t> shape;  // a matrix: [rows, cols]; a vector (kept as f32) or a tower: the checkpoint's shape
    Matrix* matrix = nullptr;    // null: the slot is a vector
    const float** vector = nullptr;
    uint8_t* storage = nullptr;        // in the backend's memory; null: not allocated
    float offset = 0;                  // is added to a vector's values
    float neutral = 0;                 // random vectors vary around this value
    bool routed = false;               // the slot is an expert; a token reads only some experts
    bool tower = false;                // the slot is not part of a forward pass of the text model
    std::shared_ptr<Balance> balance;  // balances a matrix and the norm before it; null if that is not possible
    bool is_balance = false;           // the slot is such a vector itself, which forward passes do not read
    int64_t rows_filled = 0;           // a vector has one row
    int64_t rows() const { return matrix ? shape[0] : 1; }
    int64_t values() const;
    // Bytes of `count` rows in packed form, whole cache lines. `count` is a multiple of 16, except at the end.
    int64_t packed_bytes(int64_t count) const;
    bool filled() const { return rows_filled == rows(); }
  };
  std::map<std::string, Slot> slots();

  // Fills a slot with a whole tensor, or with the next rows of a matrix, so that a large table passes through a small
  // buffer. The number of rows is a multiple of 16, except at the end. Blocks whose values the slot's format can hold
  // keep every bit; all others are converted. Throws kTensor for an unknown name, a wrong shape, rows that are not the
  // next ones, or values that are not finite in the slot's format. Throws kModelFile if the file cannot be read.
  //
  // A slot "..._balance" takes a vector s. The columns of the matrices that it balances are multiplied by s, and the
  // norm before them is divided by s. This does not change the function that the model computes; it reduces the
  // rounding errors of matrices in few bits (model/balance.h). If s is not given, all its values are 1. If it is given,
  // it has to come before the tensors that it balances. If one of its values is not 1, no block of these matrices keeps
  // its bits, unless the rows are balanced already.
  void add(const std::string& name, const SourceRows& source, int64_t first_row = 0);

  // Bytes of the packed form of `rows` rows of a slot, or of all its rows if it has fewer. 0 if there is no such slot.
  int64_t packed_bytes(const std::string& name, int64_t rows);
  // Like add(), but the packed form goes to `out`, which has packed_bytes(), and the slot stays empty. If the results
  // are written in the order of the rows, they are what use_packed() takes.
  void pack(const std::string& name, const SourceRows& source, int64_t first_row, uint8_t* out);

  // Maps the file for use_packed(). The model keeps it mapped.
  void map_file(int descriptor, const std::string& path);
  // Fills a slot with packed values of the mapped file, which are used in place. Throws kTensor for an unknown name,
  // for another size than the slot has, and for a place that is outside of the file or not at a multiple of 64. The
  // values are not checked. No bit pattern can cause an access outside of the matrix, but a NaN among the scales makes
  // the results NaN.
  void use_packed(const std::string& name, int64_t offset, int64_t bytes);

  // These are for an assistant. The first sets its target model, and throws kConfig if the two do not fit.
  // The second is needed if it has centroids. It sets the token of each row of its head, and throws kTensor for a list
  // that is not a list of ids.
  void draft_for(std::shared_ptr<const Model> target);
  void set_token_order(std::vector<int32_t> ids);

  // Sets the per-layer embedding table, which stays in its file. Throws kTensor if the model has none or if the shape
  // is wrong.
  void set_per_layer_table(RowTable table);
  bool needs_per_layer_table() const { return config_.per_layer_input_size > 0 && config_.per_layer_vocab_size > 0; }

  // Fills every empty slot with random values of the size that trained weights have. done(bytes) is called after each
  // piece of their packed form, and may throw.
  void add_random(uint64_t seed, const std::function<void(int64_t)>& done = {});

  // Throws kTensor if a slot is empty. The builder cannot be used afterwards.
  std::unique_ptr<Model> finish();

 private:
  void accept_per_layer_table(RowTable table);
  template <typename ReadRows>
  void fill(const std::string& name, const Slot& slot, int64_t first_row, int64_t row_count, const ReadRows& read_rows,
            uint8_t* out, bool balanced = false);
  template <typename PackRows>
  void fill_panels(const std::string& name, const Matrix& matrix, int64_t first_row, int64_t row_count,
                   const PackRows& pack_rows, uint8_t* out);
  Slot& find(const std::string& name);
  void pack_rows(const std::string& name, Slot& slot, const SourceRows& source, int64_t first_row, uint8_t* out);
  void set_storage(Slot& slot, const uint8_t* storage);
  void take_balance(const std::string& name, Slot& slot, const SourceRows& source);
  void set_balance(const std::string& name, Slot& slot, const float* scale);
  void declare_balance(const std::string& name, const std::string& norm, const std::vector<std::string>& matrices);
  void declare_layer(const std::string& at, const LayerConfig& config, LayerWeights& weights);
  void declare_experts(const std::string& at, const LayerConfig& config, ExpertWeights& weights);
  void declare_altup(const std::string& at, AltupWeights& weights);
  void declare_tower(const std::string& name, const TensorSpec& spec);
  void declare_matrix(const std::string& name, int64_t rows, int64_t cols, Format format, Matrix* matrix);
  void declare_norm(const std::string& name, int64_t dim, const float** norm);
  void balance_keys();
  void take_roundings();
  void balance_queries();
  std::vector<float> read_norm(const float* norm, int64_t dim);
  void replace_norm(const std::vector<float>& values, const float** norm);
  uint8_t* allocate(int64_t bytes);
  void check_can_fill() const;
  void declare_vector(const std::string& name, std::vector<int64_t> shape, float neutral, const float** vector);

  ModelConfig config_;
  Format weight_format_;
  KvFormat kv_format_;
  std::shared_ptr<Backend> backend_;
  ModelWeights weights_;
  Tensors towers_;
  std::shared_ptr<const Model> target_;
  std::map<size_t, std::vector<float>> key_factors_;
  std::vector<DeviceMemory> storage_;
  std::shared_ptr<const FileMapping> mapping_;
  const BuildMode mode_;
  const std::map<std::string, Format> formats_;
  const std::set<std::string> rounded_;
  // The key is the name of the matrix. The values are in the backend's memory.
  std::map<std::string, const float*> roundings_;
  std::map<std::string, Slot> slots_;
  std::shared_ptr<PanelScratch> rows_scratch_, raw_scratch_;  // one holds rows as float32, the other rows of the file
  bool finished_ = false;
  const int64_t available_bytes_ = available_memory();
  int64_t promised_bytes_ = 0;  // size of the buffers so far, counted here because the system grants more than it has
  ForkMutex mutex_;             // calls from several threads run one after the other
};

}  // namespace gemlet
