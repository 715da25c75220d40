// Towers for images, and their preprocessing.
#include <pybind11/numpy.h>
#include <pybind11/stl.h>
#include <pybind11/typing.h>

#include <atomic>

#include "base/error.h"
#include "bindings/bindings.h"
#include "bindings/gil.h"
#include "bindings/interruptible.h"
#include "bindings/tokens.h"
#include "vision/gemma4.h"
#include "vision/mobilenet.h"
#include "vision/resize.h"
#include "vision/siglip.h"

namespace py = pybind11;

namespace gemlet::bindings {
namespace {

using vision::Gemma4Config;
using vision::Gemma4Tower;
using vision::MobileNet;
using vision::MobileNetBlock;
using vision::MobileNetConfig;
using vision::Siglip;
using vision::SiglipConfig;
using vision::UnifiedConfig;
using vision::UnifiedEmbedder;

using Levels = py::array_t<uint8_t, py::array::c_style>;
using Pixels = py::array_t<float, py::array::c_style>;

Levels resize_image(const Levels& image, int64_t height, int64_t width, const std::string& filter) {
  if (image.ndim() != 3 || image.shape(2) != 3) {
    fail(ErrorCode::kInvalidRequest, "an image must be a uint8 array [height, width, 3], got ", array_text(image));
  }
  if (filter != "bilinear" && filter != "bicubic") {
    fail(ErrorCode::kInvalidRequest, "filter is '", filter, "', expected 'bilinear' or 'bicubic'");
  }
  vision::Image resized;
  {
    const GilRelease release;
    resized = vision::resize(image.data(), image.shape(0), image.shape(1), height, width,
                             filter == "bilinear" ? vision::Filter::kBilinear : vision::Filter::kBicubic);
  }
  auto* const own = new std::vector<uint8_t>(std::move(resized.levels));
  const py::capsule owner(own, [](void* data) { delete static_cast<std::vector<uint8_t>*>(data); });
  return Levels({resized.height, resized.width, int64_t{3}}, own->data(), owner);
}

void check_pixels(const Pixels& pixels, int64_t height, int64_t width) {
  if (pixels.ndim() != 3 || pixels.shape(0) != height || pixels.shape(1) != width || pixels.shape(2) != 3) {
    fail(ErrorCode::kInvalidRequest, "pixels must be a float32 array [", height, ", ", width, ", 3], got ",
         array_text(pixels));
  }
}
void check_pixels(const SiglipConfig& config, const Pixels& pixels) {
  check_pixels(pixels, config.image_size, config.image_size);
}
void check_pixels(const MobileNetConfig& config, const Pixels& pixels) {
  check_pixels(pixels, config.height, config.width);
}

// An image of the one size that the tower takes.
template <typename Tower>
py::array_t<float> encode_image(const Tower& tower, const Pixels& pixels, const OptionalAdapter& adapter) {
  const Adapter* const adapted = adapter_of(adapter, tower.model());
  check_pixels(tower.config(), pixels);
  py::array_t<float> out({tower.config().tokens(), tower.hidden_size()});
  float* const to = out.mutable_data();
  std::atomic<bool> cancel{false};
  run_interruptibly([&] { tower.encode(pixels.data(), to, adapted, &cancel); }, [&] { cancel = true; });
  return out;
}

// An image of any size that divides into whole tokens.
template <typename Tower>
py::array_t<float> encode_any(const Tower& tower, const Pixels& pixels, const OptionalAdapter& adapter) {
  const Adapter* const adapted = adapter_of(adapter, tower.model());
  if (pixels.ndim() != 3 || pixels.shape(2) != 3) {
    fail(ErrorCode::kInvalidRequest, "pixels must be a float32 array [height, width, 3], got ", array_text(pixels));
  }
  const int64_t height = pixels.shape(0), width = pixels.shape(1), side = tower.token_pixels();
  py::array_t<float> out({(height / side) * (width / side), tower.hidden_size()});
  float* const to = out.mutable_data();
  std::atomic<bool> cancel{false};
  run_interruptibly([&] { tower.encode(pixels.data(), height, width, to, adapted, &cancel); }, [&] { cancel = true; });
  return out;
}

MobileNetBlock::Kind kind_of(const std::string& kind) {
  if (kind == "edge") return MobileNetBlock::Kind::kEdge;
  if (kind == "inverted") return MobileNetBlock::Kind::kInverted;
  if (kind == "attention") return MobileNetBlock::Kind::kAttention;
  fail(ErrorCode::kInvalidRequest, "kind is '", kind, "', expected 'edge', 'inverted' or 'attention'");
}

template <typename Tower>
py::typing::Dict<py::str, py::array_t<float>> tower_taps(const Tower& tower, const Pixels& pixels) {
  check_pixels(tower.config(), pixels);
  py::typing::Dict<py::str, py::array_t<float>> result;
  std::vector<float> out(static_cast<size_t>(tower.config().tokens() * tower.hidden_size()));
  const TapSink sink = [&](const std::string& name, const float* data, int64_t rows, int64_t dim) {
    result[py::str(name)] = py::array_t<float>({rows, dim}, data);
  };
  tower.encode(pixels.data(), out.data(), nullptr, nullptr, &sink);
  return result;
}

}  // namespace

void register_vision(py::module_& m, py::module_& testing) {
  m.def("resize_image", &resize_image, py::arg("image"), py::kw_only(), py::arg("height"), py::arg("width"),
        py::arg("filter"),
        "An image, uint8 [height, width, 3], in another size: 'bilinear' or 'bicubic' with antialiasing, the same "
        "levels as torchvision's.");

  py::class_<SiglipConfig>(m, "SiglipConfig", py::is_final(), "The sizes of Gemma 3's vision tower.")
      .def(py::init([](int64_t image_size, int64_t patch_size, int64_t hidden_size, int64_t intermediate_size,
                       int64_t num_layers, int64_t num_heads, double layer_norm_eps, int64_t tokens_per_side) {
             const SiglipConfig config = {image_size, patch_size, hidden_size,    intermediate_size,
                                          num_layers, num_heads,  layer_norm_eps, tokens_per_side};
             config.validate();
             return config;
           }),
           py::kw_only(), py::arg("image_size"), py::arg("patch_size"), py::arg("hidden_size"),
           py::arg("intermediate_size"), py::arg("num_layers"), py::arg("num_heads"), py::arg("layer_norm_eps"),
           py::arg("tokens_per_side"))
      .def(
          "activation_bytes",
          [](const SiglipConfig& config, int64_t hidden_size, const std::string& weights) {
            return Siglip::activation_bytes(config, hidden_size, weight_format(weights), *make_cpu_backend({}));
          },
          py::arg("hidden_size"), py::arg("weights"),
          "Bytes that an image takes on its way, in a model of this hidden size with weights of that format.");

  py::class_<Siglip>(m, "SiglipTower", py::is_final(), "Gemma 3's vision tower and projector, in a loaded model.")
      .def(py::init<std::shared_ptr<Model>, const SiglipConfig&>(), py::arg("model").none(false), py::arg("config"))
      .def("encode", &encode_image<Siglip>, py::arg("pixels"), py::arg("adapter") = py::none(),
           "From normalised pixels, float32 [size, size, 3], to soft tokens, float32 [tokens, hidden_size]. Ctrl-C "
           "ends it at the next layer.");

  py::class_<Gemma4Config>(m, "Gemma4VisionConfig", py::is_final(), "The sizes of Gemma 4's vision tower.")
      .def(py::init([](int64_t patch_size, int64_t hidden_size, int64_t intermediate_size, int64_t num_layers,
                       int64_t num_heads, int64_t num_kv_heads, int64_t head_dim, int64_t pool, int64_t positions,
                       bool clipped, bool standardize, double rope_theta, double rms_norm_eps) {
             const Gemma4Config config = {
                 patch_size, hidden_size, intermediate_size, num_layers,  num_heads,  num_kv_heads, head_dim,
                 pool,       positions,   clipped,           standardize, rope_theta, rms_norm_eps};
             config.validate();
             return config;
           }),
           py::kw_only(), py::arg("patch_size"), py::arg("hidden_size"), py::arg("intermediate_size"),
           py::arg("num_layers"), py::arg("num_heads"), py::arg("num_kv_heads"), py::arg("head_dim"), py::arg("pool"),
           py::arg("positions"), py::arg("clipped"), py::arg("standardize"), py::arg("rope_theta"),
           py::arg("rms_norm_eps"))
      .def(
          "activation_bytes",
          [](const Gemma4Config& config, int64_t tokens, int64_t hidden_size, const std::string& weights) {
            return Gemma4Tower::activation_bytes(config, tokens, hidden_size, weight_format(weights),
                                                 *make_cpu_backend({}));
          },
          py::arg("tokens"), py::arg("hidden_size"), py::arg("weights"),
          "Bytes of memory that encoding an image of this many tokens takes.");

  py::class_<Gemma4Tower>(m, "Gemma4VisionTower", py::is_final(), "Gemma 4's vision tower, in a loaded model.")
      .def(py::init<std::shared_ptr<Model>, const Gemma4Config&>(), py::arg("model").none(false), py::arg("config"))
      .def("encode", &encode_any<Gemma4Tower>, py::arg("pixels"), py::arg("adapter") = py::none(),
           "From pixels between 0 and 1, float32 [height, width, 3], of whole tokens, to soft tokens, float32 [tokens, "
           "hidden_size]. Ctrl-C ends it at the next layer.");

  py::class_<UnifiedEmbedder>(m, "UnifiedVisionEmbedder", py::is_final(),
                              "What makes soft tokens of an image in the unified Gemma 4, in a loaded model.")
      .def(py::init([](const std::shared_ptr<Model>& model, int64_t tile_size, int64_t hidden_size, int64_t positions,
                       double rms_norm_eps) {
             return std::make_unique<UnifiedEmbedder>(model,
                                                      UnifiedConfig{tile_size, hidden_size, positions, rms_norm_eps});
           }),
           py::arg("model").none(false), py::kw_only(), py::arg("tile_size"), py::arg("hidden_size"),
           py::arg("positions"), py::arg("rms_norm_eps"))
      .def("encode", &encode_any<UnifiedEmbedder>, py::arg("pixels"), py::arg("adapter") = py::none(),
           "As Gemma4VisionTower.encode().");

  py::class_<MobileNetBlock>(m, "MobileNetBlock", py::is_final(), "A block of Gemma 3n's vision tower.")
      .def(py::init([](const std::string& kind, int64_t in_channels, int64_t out_channels, int64_t inner,
                       int64_t start_kernel, int64_t middle_kernel, int64_t stride, int64_t num_heads,
                       int64_t head_dim) {
             return MobileNetBlock{kind_of(kind), in_channels, out_channels, inner,   start_kernel,
                                   middle_kernel, stride,      num_heads,    head_dim};
           }),
           py::kw_only(), py::arg("kind"), py::arg("in_channels"), py::arg("out_channels"), py::arg("inner"),
           py::arg("start_kernel"), py::arg("middle_kernel"), py::arg("stride"), py::arg("num_heads"),
           py::arg("head_dim"));

  py::class_<MobileNetConfig>(m, "MobileNetConfig", py::is_final(), "The sizes of Gemma 3n's vision tower.")
      .def(py::init([](int64_t height, int64_t width, int64_t stem_channels,
                       const std::vector<std::vector<MobileNetBlock>>& stages, int64_t fused_inner, int64_t hidden_size,
                       int64_t tokens_per_side, double rms_norm_eps) {
             const MobileNetConfig config = {height,      width,       stem_channels,   stages,
                                             fused_inner, hidden_size, tokens_per_side, rms_norm_eps};
             config.validate();
             return config;
           }),
           py::kw_only(), py::arg("height"), py::arg("width"), py::arg("stem_channels"), py::arg("stages"),
           py::arg("fused_inner"), py::arg("hidden_size"), py::arg("tokens_per_side"), py::arg("rms_norm_eps"))
      .def(
          "activation_bytes",
          [](const MobileNetConfig& config, int64_t hidden_size, const std::string& weights) {
            return MobileNet::activation_bytes(config, hidden_size, weight_format(weights), *make_cpu_backend({}));
          },
          py::arg("hidden_size"), py::arg("weights"),
          "Bytes that an image takes on its way, in a model of this hidden size with weights of that format.");

  py::class_<MobileNet>(m, "MobileNetTower", py::is_final(), "Gemma 3n's vision tower and embedder, in a loaded model.")
      .def(py::init<std::shared_ptr<Model>, const MobileNetConfig&>(), py::arg("model").none(false), py::arg("config"))
      .def("encode", &encode_image<MobileNet>, py::arg("pixels"), py::arg("adapter") = py::none(),
           "From pixels between 0 and 1, float32 [height, width, 3], to soft tokens, float32 [tokens, hidden_size]. "
           "Ctrl-C ends it at the next block.");

  testing.def("siglip_taps", &tower_taps<Siglip>, py::arg("tower"), py::arg("pixels"),
              "Intermediate activations of an image in the tower by name, float32 [patches, hidden].");
  testing.def("mobilenet_taps", &tower_taps<MobileNet>, py::arg("tower"), py::arg("pixels"),
              "The same of Gemma 3n's tower, float32 [places, channels].");
}

}  // namespace gemlet::bindings
