#include <pybind11/numpy.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <cmath>
#include <functional>
#include <memory>
#include <optional>
#include <random>
#include <utility>

#include "base/error.h"
#include "bindings/bindings.h"
#include "bindings/gil.h"
#include "bindings/logprobs.h"
#include "bindings/tokens.h"
#include "engine/engine.h"

namespace py = pybind11;

namespace gemlet::bindings {
namespace {

// A waiting thread lets signal handlers run at this interval.
constexpr std::chrono::milliseconds kSlice(20);
constexpr double kMostSeconds = 1e9;

using Seconds = std::chrono::duration<double>;
using Mask = py::array_t<uint32_t, py::array::c_style>;

// More seconds than kMostSeconds count as forever.
std::optional<std::chrono::nanoseconds> duration(const std::optional<double>& seconds, const char* name) {
  if (!seconds) return std::nullopt;
  if (!(*seconds >= 0)) fail(ErrorCode::kInvalidRequest, name, " is ", *seconds, ", expected seconds >= 0");
  return std::chrono::duration_cast<std::chrono::nanoseconds>(Seconds(std::min(*seconds, kMostSeconds)));
}

const char* name_of(FinishReason reason) {
  switch (reason) {
    case FinishReason::kStop:
      return "stop";
    case FinishReason::kLength:
      return "length";
    case FinishReason::kContext:
      return "context";
    case FinishReason::kCancelled:
      return "cancelled";
    case FinishReason::kTimeout:
      return "timeout";
    case FinishReason::kNone:
    case FinishReason::kFailed:
      break;
  }
  return nullptr;
}

// A request whose reader is an object of Python. The request ends with that object.
class Ticket {
 public:
  Ticket(std::shared_ptr<Request> request, int64_t of_rows) : width(of_rows), request_(std::move(request)) {}
  ~Ticket() { request_->cancel(); }
  Ticket(const Ticket&) = delete;
  Ticket& operator=(const Ticket&) = delete;
  Request& operator*() const { return *request_; }
  Request* operator->() const { return request_.get(); }

  const int64_t width;                   // the width of its rows
  std::vector<Logprobs> taken_logprobs;  // the log probabilities of the last take()

 private:
  const std::shared_ptr<Request> request_;
};

// float32 [rows, width], or none if there are no rows. Requests for text have no rows, so they do not import NumPy.
std::optional<py::array_t<float>> rows_of(std::vector<float> values, int64_t width) {
  if (values.empty()) return std::nullopt;
  auto* const own = new std::vector<float>(std::move(values));
  const py::capsule owner(own, [](void* data) { delete static_cast<std::vector<float>*>(data); });
  return py::array_t<float>({static_cast<int64_t>(own->size()) / width, width}, own->data(), owner);
}

Wanted wanted_of(const std::string& name) {
  if (name == "text") return Wanted::kText;
  if (name == "logits") return Wanted::kLogits;
  if (name == "embedding") return Wanted::kEmbedding;
  fail(ErrorCode::kInvalidRequest, "wanted is '", name, "', expected 'text', 'logits' or 'embedding'");
}

DraftUse drafts_of(const std::string& name) {
  if (name == "never") return DraftUse::kNever;
  if (name == "paying") return DraftUse::kWherePaying;
  if (name == "always") return DraftUse::kAlways;
  fail(ErrorCode::kInvalidRequest, "drafts is '", name, "', expected 'never', 'paying' or 'always'");
}

// The known text of the engine's only request, and the share of the drafter's tokens that are to be accepted.
using Rehearsal = std::pair<std::vector<int32_t>, double>;

std::function<int32_t(int64_t, int32_t)> rehearse(const Rehearsal& rehearsal, int64_t vocab) {
  return [ids = rehearsal.first, chance = rehearsal.second, vocab, random = std::minstd_rand(1)](int64_t position,
                                                                                                 int32_t id) mutable {
    if (position >= static_cast<int64_t>(ids.size())) return id;
    const int32_t right = ids[static_cast<size_t>(position)];
    const bool is_right = std::uniform_real_distribution<double>()(random) < chance;
    return is_right ? right : static_cast<int32_t>((right + 1) % vocab);
  };
}

// The engine is closed without Python's lock: its worker may be in the middle of a layer.
struct CloseEngine {
  void operator()(Engine* engine) const {
    const GilRelease release;
    delete engine;
  }
};

void wait(Engine& engine, const Event& news, uint32_t seen, const std::optional<double>& seconds) {
  const auto patience = duration(seconds, "patience");
  const auto start = std::chrono::steady_clock::now();
  while (news.value() == seen) {
    std::chrono::nanoseconds slice = kSlice;
    if (patience) {
      const auto left = *patience - (std::chrono::steady_clock::now() - start);
      if (left <= std::chrono::nanoseconds(0)) return;
      slice = std::min<std::chrono::nanoseconds>(slice, left);
    }
    {
      const GilRelease release;
      engine.wait(news, seen, slice);
    }
    if (PyErr_CheckSignals() != 0) throw py::error_already_set();
  }
}

}  // namespace

void register_requests(py::module_& m) {
  using release_gil = py::call_guard<GilRelease>;
  py::class_<Event, std::shared_ptr<Event>>(m, "News", py::is_final(),
                                            "A number that changes when a request has tokens to take, or has ended.")
      .def(py::init([](bool readable) {
             auto event = std::make_shared<Event>(readable ? Event::Descriptor::kReadable : Event::Descriptor::kNone);
             if (readable && event->descriptor() < 0) {
               fail(ErrorCode::kMemory, "the system grants no more file descriptors; close some");
             }
             return event;
           }),
           py::kw_only(), py::arg("readable") = false,
           "`readable`: with a file descriptor that is readable after each change, until clear().")
      .def_property_readonly("value", &Event::value)
      .def("fileno", &Event::descriptor, "The descriptor, -1 if there is none.")
      .def("clear", &Event::clear_descriptor, "Makes the descriptor unreadable until the next change.");

  py::class_<Ticket>(m, "Request", py::is_final(),
                     "A text that the engine continues until the text ends or this object is destroyed.")
      .def(
          "take",
          [](Ticket& ticket) {
            Request::Output output = ticket->take();
            ticket.taken_logprobs = std::move(output.logprobs);
            const char* const reason = name_of(output.reason);
            return std::make_tuple(std::move(output.ids), reason ? std::optional<std::string>(reason) : std::nullopt,
                                   rows_of(std::move(output.values), ticket.width));
          },
          "What came since the last call: token ids, why the request has ended ('stop', 'length', 'context', "
          "'cancelled', 'timeout', or None), and float32 rows [n, width] of logits or of an embedding, or None. Does "
          "not wait. "
          "Raises the error that ended it.")
      .def(
          "cancel", [](const Ticket& ticket) { ticket->cancel(); }, "Ends the text at the next opportunity.")
      .def(
          "set_mask",
          [](const Ticket& ticket, int64_t position, const std::optional<Mask>& mask,
             const std::vector<int32_t>& behind) {
            TokenMask bits;
            if (mask) {
              if (mask->ndim() != 1 || mask->size() * 32 < ticket.width) {
                fail(ErrorCode::kInvalidRequest, "the mask has ", mask->size(), " numbers in ", mask->ndim(),
                     " dimensions, expected 32 bits in each and a bit for each of ", ticket.width, " ids");
              }
              bits.assign(mask->data(), mask->data() + mask->size());
            }
            ticket->set_mask(position, std::move(bits), behind);
          },
          py::arg("position"), py::arg("mask"), py::arg("behind") = std::vector<int32_t>(),
          "Sets which ids may be the token after `position` others of a masked request: uint32 [n], a bit for each id, "
          "the lowest first; None: all. The engine does not choose the token until its mask is set. `behind`: the "
          "draft tokens among these others. A mask for a token that was chosen meanwhile changes nothing.")
      .def_property_readonly(
          "guessed", [](const Ticket& ticket) { return ticket->guessed(); },
          "The number of chosen tokens of a masked request, and the draft tokens after them.")
      .def_property_readonly(
          "logprobs", [](const Ticket& ticket) { return pairs_of(ticket.taken_logprobs); },
          "For each token of the last take(), if wanted: its log probability in the model's own distribution, "
          "and pairs (token id, log probability) of the likeliest tokens.")
      .def_property_readonly("cached_tokens", [](const Ticket& ticket) { return ticket->cached_tokens(); })
      .def_property_readonly("read_tokens", [](const Ticket& ticket) { return ticket->read_tokens(); })
      .def_property_readonly(
          "guesses",
          [](const Ticket& ticket) {
            const Request::Times times = ticket->times();
            return std::make_pair(times.drafted, times.accepted);
          },
          "The number of its draft tokens that went through passes, and the number of accepted ones.")
      .def_property_readonly(
          "times",
          [](const Ticket& ticket) {
            const Request::Times times = ticket->times();
            return std::make_tuple(times.waiting, times.reading, times.writing, times.steps, times.tokens);
          },
          "Seconds until its first pass, from there to the first token and from there to the last one; how many steps "
          "came after the first token, and how many tokens they chose, an end token too.");

  py::class_<Engine, std::unique_ptr<Engine, CloseEngine>>(m, "Engine", py::is_final(),
                                                           "Continues many texts of a model at once.")
      .def(py::init([](const std::shared_ptr<Model>& model, int64_t most_running, int64_t kv_bytes,
                       int64_t prefix_cache_bytes, const std::optional<std::string>& prefix_cache_folder,
                       int64_t prefix_cache_folder_bytes, const py::bytes& model_digest, const std::string& drafts,
                       int64_t most_drafted, const std::optional<std::shared_ptr<Model>>& drafter, int64_t draft_tokens,
                       int64_t drafter_kv_bytes, int64_t drafter_cache_bytes,
                       const std::optional<Rehearsal>& rehearsed) {
             if (most_running < 1 || most_running > kChunkTokens) {
               fail(ErrorCode::kInvalidRequest, "most_running is ", most_running, ", expected 1 to ", kChunkTokens);
             }
             if (kv_bytes < 0 || prefix_cache_bytes < 0) {
               fail(ErrorCode::kInvalidRequest, "kv_bytes is ", kv_bytes, " and prefix_cache_bytes ",
                    prefix_cache_bytes, ", expected 0 or more");
             }
             PrefixCache::Options prefix_cache = {prefix_cache_bytes, digest_of(model_digest, "model_digest")};
             if (prefix_cache_folder) {
               prefix_cache.folder = std::make_shared<DiskFolder>(*prefix_cache_folder, prefix_cache_folder_bytes);
             }
             if (drafter_kv_bytes < 0 || drafter_cache_bytes < 0) {
               fail(ErrorCode::kInvalidRequest, "drafter_kv_bytes is ", drafter_kv_bytes, " and drafter_cache_bytes ",
                    drafter_cache_bytes, ", expected 0 or more");
             }
             EngineOptions options = {most_running, kv_bytes, std::move(prefix_cache), drafts_of(drafts),
                                      std::clamp<int64_t>(most_drafted, 0, StepTimes::kMostRows - 1)};
             options.drafter = drafter.value_or(nullptr);
             options.most_of_drafter = std::clamp<int64_t>(draft_tokens, 0, StepTimes::kMostRows - 1);
             options.drafter_kv_bytes = drafter_kv_bytes;
             options.drafter_cache_bytes = drafter_cache_bytes;
             if (rehearsed) options.rehearse = rehearse(*rehearsed, model->config().vocab_size);
             return std::unique_ptr<Engine, CloseEngine>(new Engine(model, std::move(options)));
           }),
           py::arg("model").none(false), py::kw_only(), py::arg("most_running") = 32, py::arg("kv_bytes") = INT64_MAX,
           py::arg("prefix_cache_bytes") = 0, py::arg("prefix_cache_folder") = py::none(),
           py::arg("prefix_cache_folder_bytes") = 0, py::arg("model_digest") = py::bytes(),
           py::arg("drafts") = "paying", py::arg("most_drafted") = StepTimes::kMostRows - 1,
           py::arg("drafter") = py::none(), py::arg("draft_tokens") = StepTimes::kMostRows - 1,
           py::arg("drafter_kv_bytes") = INT64_MAX, py::arg("drafter_cache_bytes") = 0,
           py::arg("rehearsed") = py::none(),
           "`most_running`: the most requests that advance together. `kv_bytes`: the limit for keys and values, in "
           "addition to one full context. `model_digest`: 32 bytes that name the model in the folder. `drafts`: when "
           "draft tokens are used: 'never', 'paying' (where it is faster) or 'always'; at most `most_drafted` in a "
           "step. `drafter`: a draft model built beside this one; it proposes at most `draft_tokens` tokens for a "
           "request at a time. `rehearsed`, for measurements: (the ids of the only text, the share of the drafter's "
           "tokens that are to be accepted).")
      .def(
          "submit",
          [](Engine& engine, const TokenIds& prompt, const std::optional<const Sampler*>& sampler,
             const std::shared_ptr<Event>& news, const std::string& wanted, int64_t max_tokens,
             std::vector<int32_t> end_ids, const std::optional<std::shared_ptr<Adapter>>& adapter, int64_t priority,
             const std::optional<double>& timeout, int64_t most_unread, uint64_t cache_salt,
             std::optional<size_t> logprobs, int64_t first_row, bool masked, const MediaPairs& media) {
            RequestOptions options;
            options.wanted = wanted_of(wanted);
            options.prompt = token_ids(prompt);
            options.media = placed(media);
            if (sampler) options.sampler = (*sampler)->config();
            options.news = news;
            options.max_tokens = max_tokens;
            options.end_ids = std::move(end_ids);
            options.adapter = adapter.value_or(nullptr);
            options.priority = priority;
            if (const auto patience = duration(timeout, "timeout")) {
              options.deadline = RequestOptions::Clock::now() + *patience;
            }
            options.most_unread = most_unread;
            options.cache_salt = cache_salt;
            options.masked = masked;
            options.logprobs = logprobs;
            options.first_row = first_row;
            const GilRelease release;
            return std::make_unique<Ticket>(engine.submit(std::move(options)), engine.row_width());
          },
          py::arg("prompt"), py::kw_only(), py::arg("sampler") = py::none(), py::arg("news").none(false),
          py::arg("wanted") = "text", py::arg("max_tokens") = 1, py::arg("end_ids") = std::vector<int32_t>(),
          py::arg("adapter") = py::none(), py::arg("priority") = 0, py::arg("timeout") = py::none(),
          py::arg("most_unread") = 16, py::arg("cache_salt") = 0, py::arg("logprobs") = py::none(),
          py::arg("first_row") = 0, py::arg("masked") = false, py::arg("media") = MediaPairs(),
          "Begins a request about the token ids of a prompt [n]. `wanted`: 'text' continues it, 'logits' gives those "
          "after each token from number `first_row` on, 'embedding' is for models that make embeddings. `masked`: each "
          "token of a text waits for Request.set_mask(). `media`: (first token, Media) pairs, in order.")
      .def_property_readonly("prefix_cache", &Engine::prefix_cache, "What it keeps of texts that have ended.")
      .def("wait", &wait, py::arg("news").none(false), py::arg("seen"), py::arg("patience") = py::none(),
           "Waits until the news differ from `seen`, at most this many seconds. Signal handlers run meanwhile.")
      .def(
          "stats",
          [](const Engine& engine) {
            const EngineStats stats = engine.stats();
            py::typing::Dict<py::str, py::typing::Union<py::int_, py::float_>> result;
            result["running"] = stats.running;
            result["waiting"] = stats.waiting;
            result["longest_wait"] = stats.longest_wait;
            result["begun"] = stats.begun;
            result["waiting_seconds"] = stats.waiting_seconds;
            result["steps"] = stats.steps;
            result["prompt_tokens"] = stats.prompt_tokens;
            result["cached_tokens"] = stats.cached_tokens;
            result["generated_tokens"] = stats.generated_tokens;
            result["drafts"] = stats.drafts;
            result["drafted_tokens"] = stats.drafted_tokens;
            result["accepted_tokens"] = stats.accepted_tokens;
            result["preemptions"] = stats.preemptions;
            result["prefix_cache_bytes"] = stats.prefix_cache_bytes;
            result["kv_bytes"] = stats.kv_bytes;
            result["kv_room_bytes"] = stats.kv_room_bytes;
            result["disk_read_bytes"] = stats.disk_read_bytes;
            result["disk_written_bytes"] = stats.disk_written_bytes;
            result["step_seconds"] = stats.step_seconds;
            result["bytes_read"] = stats.bytes_read;
            return result;
          },
          "Counts since the engine began, and what is in use now.")
      .def("close", &Engine::close, release_gil(), "Ends all requests ('cancelled') and waits for the worker.");
}

}  // namespace gemlet::bindings
