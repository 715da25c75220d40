#include <pybind11/stl.h>

#include "bindings/bindings.h"
#include "model/config.h"

namespace py = pybind11;

namespace gemlet::bindings {

void register_config(py::module_& m) {
  py::class_<LayerConfig>(m, "LayerConfig", py::is_final(), "One layer's shape and rules.")
      .def(py::init([](int64_t num_heads, int64_t num_kv_heads, int64_t head_dim, int64_t intermediate_size,
                       double query_scale, double rope_theta, double rope_scaling_factor, int64_t sliding_window,
                       double attention_softcap, bool qk_norm, bool post_norms) {
             return LayerConfig{num_heads,  num_kv_heads,        head_dim,       intermediate_size, query_scale,
                                rope_theta, rope_scaling_factor, sliding_window, attention_softcap, qk_norm,
                                post_norms};
           }),
           py::kw_only(), py::arg("num_heads"), py::arg("num_kv_heads"), py::arg("head_dim"),
           py::arg("intermediate_size"), py::arg("query_scale"), py::arg("rope_theta"),
           py::arg("rope_scaling_factor") = 1.0, py::arg("sliding_window") = 0, py::arg("attention_softcap") = 0.0,
           py::arg("qk_norm") = false, py::arg("post_norms") = false)
      .def_readonly("num_heads", &LayerConfig::num_heads)
      .def_readonly("num_kv_heads", &LayerConfig::num_kv_heads)
      .def_readonly("head_dim", &LayerConfig::head_dim)
      .def_readonly("intermediate_size", &LayerConfig::intermediate_size)
      .def_readonly("query_scale", &LayerConfig::query_scale)
      .def_readonly("rope_theta", &LayerConfig::rope_theta)
      .def_readonly("rope_scaling_factor", &LayerConfig::rope_scaling_factor)
      .def_readonly("sliding_window", &LayerConfig::sliding_window)
      .def_readonly("attention_softcap", &LayerConfig::attention_softcap)
      .def_readonly("qk_norm", &LayerConfig::qk_norm)
      .def_readonly("post_norms", &LayerConfig::post_norms);

  py::class_<ModelConfig>(m, "ModelConfig", py::is_final(), "A model as data; validated on construction.")
      .def(py::init([](int64_t vocab_size, int64_t hidden_size, int64_t max_context, double rms_norm_eps,
                       double embedding_scale, std::vector<LayerConfig> layers, double final_softcap, double norm_offset,
                       bool tied_embeddings) {
             ModelConfig config{vocab_size,    hidden_size, max_context,     rms_norm_eps,     embedding_scale,
                                final_softcap, norm_offset, tied_embeddings, std::move(layers)};
             config.validate();
             return config;
           }),
           py::kw_only(), py::arg("vocab_size"), py::arg("hidden_size"), py::arg("max_context"), py::arg("rms_norm_eps"),
           py::arg("embedding_scale"), py::arg("layers"), py::arg("final_softcap") = 0.0, py::arg("norm_offset") = 0.0,
           py::arg("tied_embeddings") = true)
      .def_readonly("vocab_size", &ModelConfig::vocab_size)
      .def_readonly("hidden_size", &ModelConfig::hidden_size)
      .def_readonly("max_context", &ModelConfig::max_context)
      .def_readonly("rms_norm_eps", &ModelConfig::rms_norm_eps)
      .def_readonly("embedding_scale", &ModelConfig::embedding_scale)
      .def_readonly("layers", &ModelConfig::layers)
      .def_readonly("final_softcap", &ModelConfig::final_softcap)
      .def_readonly("norm_offset", &ModelConfig::norm_offset)
      .def_readonly("tied_embeddings", &ModelConfig::tied_embeddings);
}

}  // namespace gemlet::bindings
