#include <pybind11/stl.h>

#include <cstdint>
#include <optional>
#include <string>
#include <type_traits>
#include <vector>

#include "base/error.h"
#include "bindings/bindings.h"
#include "model/config.h"

namespace py = pybind11;

namespace gemlet::bindings {
namespace {

// The kind of value that a field of this type takes, for error messages.
template <typename Value>
constexpr const char* expected_text() {
  if constexpr (std::is_same_v<Value, bool>) return "True or False";
  if constexpr (std::is_same_v<Value, int32_t>) return "an integer of at most 32 bits";
  if constexpr (std::is_same_v<Value, int64_t>) return "an integer of at most 64 bits";
  if constexpr (std::is_same_v<Value, double>) return "a number";
  if constexpr (std::is_same_v<Value, std::optional<double>>) return "a number or None";
  if constexpr (std::is_same_v<Value, std::vector<int32_t>>) return "a list of integers of at most 32 bits";
  if constexpr (std::is_same_v<Value, std::vector<int64_t>>) return "a list of integers of at most 64 bits";
  if constexpr (std::is_same_v<Value, std::vector<float>>) return "a list of numbers";
  if constexpr (std::is_same_v<Value, std::vector<LayerConfig>>) return "a list of LayerConfig";
}

// For constructors with keywords: a name that is not a field is an error, and a field without a value keeps the default
// of config.h.
template <typename Config, typename Value>
bool set_field(Config& config, const std::string& name, const char* field, Value Config::* member, py::handle value) {
  if (name != field) return false;
  try {
    config.*member = py::cast<Value>(value);
  } catch (const py::cast_error&) {
    fail(ErrorCode::kConfig, field, " is ", py::repr(value).cast<std::string>(), " of type ",
         py::type::handle_of(value).attr("__name__").cast<std::string>(), ", expected ", expected_text<Value>());
  }
  return true;
}

// clang-format off
#define GEMLET_LAYER_FIELDS(X) \
  X(num_heads) X(num_kv_heads) X(head_dim) X(intermediate_size) X(query_scale) X(rope_theta) X(rope_scaling_factor) \
  X(sliding_window) X(attention_softcap) X(qk_norm) X(post_norms) X(v_norm) X(key_is_value) X(rope_partial_factor) \
  X(kv_source) X(activation_sparsity) X(num_experts) X(experts_per_token) X(expert_intermediate_size) X(layer_scalar) \
  X(bidirectional_spans) X(rope_frequencies)

#define GEMLET_MODEL_FIELDS(X) \
  X(vocab_size) X(hidden_size) X(max_context) X(rms_norm_eps) X(embedding_scale) X(exact_gelu) X(final_softcap) \
  X(norm_offset) X(tied_embeddings) X(per_layer_input_size) X(per_layer_vocab_size) X(altup_streams) X(laurel_rank) X(bidirectional) \
  X(dense_sizes) X(placeholder_ids) X(placeholders_read_as) X(longest_span) X(target_size) X(centroids) \
  X(centroids_per_token) X(layers)
// clang-format on

template <typename Config, typename SetField>
Config from_keywords(const char* type, const py::kwargs& keywords, const SetField& set) {
  Config config;
  for (const auto& [key, value] : keywords) {
    const std::string name = py::cast<std::string>(key);
    if (!set(config, name, value)) {
      throw py::type_error(std::string(type) + "() has no argument '" + name + "'");
    }
  }
  return config;
}

}  // namespace

void register_config(py::module_& m) {
  py::class_<LayerConfig> layer(m, "LayerConfig", py::is_final(),
                                "The shape and rules of one layer. The fields are keywords.");
  layer.def(py::init([](const py::KWArgs<py::object>& keywords) {
    return from_keywords<LayerConfig>("LayerConfig", keywords,
                                      [](LayerConfig& c, const std::string& name, py::handle v) {
#define GEMLET_SET(field) set_field(c, name, #field, &LayerConfig::field, v) ||
                                        return GEMLET_LAYER_FIELDS(GEMLET_SET) false;
#undef GEMLET_SET
                                      });
  }));
#define GEMLET_BIND(field) layer.def_readonly(#field, &LayerConfig::field);
  GEMLET_LAYER_FIELDS(GEMLET_BIND)
#undef GEMLET_BIND

  py::class_<ModelConfig> model(m, "ModelConfig", py::is_final(),
                                "A model as data. The fields are keywords; their values are checked.");
  model.def(py::init([](const py::KWArgs<py::object>& keywords) {
    ModelConfig config =
        from_keywords<ModelConfig>("ModelConfig", keywords, [](ModelConfig& c, const std::string& name, py::handle v) {
#define GEMLET_SET(field) set_field(c, name, #field, &ModelConfig::field, v) ||
          return GEMLET_MODEL_FIELDS(GEMLET_SET) false;
#undef GEMLET_SET
        });
    config.validate();
    return config;
  }));
#define GEMLET_BIND(field) model.def_readonly(#field, &ModelConfig::field);
  GEMLET_MODEL_FIELDS(GEMLET_BIND)
#undef GEMLET_BIND
}

}  // namespace gemlet::bindings
