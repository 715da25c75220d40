// Checks the engine under load. ThreadSanitizer watches this in CI.
#include <algorithm>
#include <cstdio>
#include <exception>
#include <memory>
#include <mutex>
#include <string>
#include <thread>

#include "check/check.h"
#include "engine/engine.h"
#include "engine/sequence.h"

namespace gemlet::check {
namespace {

constexpr int kReaders = 4, kRequests = 12;  // requests of each reader
constexpr int64_t kContext = 256;

// How far below the largest logit a token may lie that counts as the likeliest: what rounding explains.
constexpr float kSlack = 1e-3f;

using Tokens = std::vector<int32_t>;

Tokens random_tokens(Random& random, int64_t count) {
  Tokens ids;
  for (int64_t i = 0; i < count; ++i) ids.push_back(static_cast<int32_t>(random.below(kSmallVocab)));
  return ids;
}

struct Written {
  Tokens prompt, generated;
  FinishReason reason = FinishReason::kNone;
};

// Reads one text to its end, or cancels it after a while.
Written read(Engine& engine, Random& random, const std::vector<Tokens>& beginnings) {
  RequestOptions options;
  options.prompt = beginnings[static_cast<size_t>(random.below(static_cast<int64_t>(beginnings.size())))];
  const Tokens rest = random_tokens(random, 1 + random.below(60));
  options.prompt.insert(options.prompt.end(), rest.begin(), rest.end());
  options.sampler.temperature = 0;
  options.max_tokens = 1 + random.below(40);
  options.most_unread = 1 + random.below(8);
  options.priority = random.below(3);
  options.news = std::make_shared<Event>();
  if (random.below(10) == 0)
    options.deadline = RequestOptions::Clock::now() + std::chrono::milliseconds(random.below(9));
  const int64_t patience = random.below(5) == 0 ? random.below(20) : kContext;  // tokens until it is cancelled
  Written written = {options.prompt, {}, FinishReason::kNone};
  const std::shared_ptr<Event> news = options.news;
  const std::shared_ptr<Request> request = engine.submit(std::move(options));
  while (written.reason == FinishReason::kNone) {
    const uint32_t seen = news->value();
    const Request::Output output = request->take();
    written.generated.insert(written.generated.end(), output.ids.begin(), output.ids.end());
    written.reason = output.reason;
    if (static_cast<int64_t>(written.generated.size()) >= patience) request->cancel();
    if (written.reason == FinishReason::kNone) engine.wait(*news, seen, std::chrono::milliseconds(50));
  }
  return written;
}

// Every token must be the likeliest one after those before it.
void check_text(const std::shared_ptr<Model>& model, const Written& written) {
  if (written.generated.empty()) return;
  Tokens ids = written.prompt;
  ids.insert(ids.end(), written.generated.begin(), written.generated.end() - 1);
  Sequence sequence(model);
  sequence.extend({ids}, LogitsWanted::kAll);
  const std::vector<float> logits = sequence.logits();
  for (size_t i = 0; i < written.generated.size(); ++i) {
    const auto row = logits.begin() + static_cast<int64_t>(written.prompt.size() - 1 + i) * kSmallVocab;
    const float largest = *std::max_element(row, row + kSmallVocab);
    if (!(row[written.generated[i]] >= largest - kSlack)) {
      failed("token " + std::to_string(i) + " of a text is not the likeliest one");
    }
  }
}

}  // namespace

void check_engine(Tier tier) {
  begin_case("engine", tier, "under load");
  const std::shared_ptr<Model> model = small_model(tier, Format::kF32, KvFormat::kF32, 2);
  std::vector<Written> texts;
  int64_t preemptions = 0, cached = 0;
  {
    // Room for one and a half of the longest texts, so that memory runs out often.
    const int64_t half = model->kv().layout().peak_bytes() / 2;
    Engine engine(model, {6, half, {half}});
    Random random(21);
    std::vector<Tokens> beginnings = {{}};
    for (int i = 0; i < 3; ++i) beginnings.push_back(random_tokens(random, 70 + 40 * i));
    std::mutex mutex;
    std::exception_ptr error;
    std::vector<std::thread> readers;
    for (int reader = 0; reader < kReaders; ++reader) {
      readers.emplace_back([&, reader] {
        Random own(static_cast<uint64_t>(100 + reader));
        for (int i = 0; i < kRequests; ++i) {
          try {
            Written written = read(engine, own, beginnings);
            const std::lock_guard<std::mutex> lock(mutex);
            texts.push_back(std::move(written));
          } catch (...) {
            const std::lock_guard<std::mutex> lock(mutex);
            error = std::current_exception();
          }
        }
      });
    }
    for (std::thread& reader : readers) reader.join();
    if (error) std::rethrow_exception(error);
    preemptions = engine.stats().preemptions;
    cached = engine.stats().cached_tokens;
  }
  if (model->kv().used_bytes() != 0) failed("blocks of keys and values were not given back");
  int64_t tokens = 0;
  for (const Written& written : texts) {
    check_text(model, written);
    tokens += static_cast<int64_t>(written.generated.size());
  }
  std::printf("engine: %zu texts, %lld tokens, %lld from the cache, %lld preemptions\n", texts.size(),
              static_cast<long long>(tokens), static_cast<long long>(cached), static_cast<long long>(preemptions));
}

}  // namespace gemlet::check
