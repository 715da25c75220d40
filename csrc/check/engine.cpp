// Checks the engine under load. ThreadSanitizer watches this in CI.
#include <stdlib.h>

#include <algorithm>
#include <cstdio>
#include <exception>
#include <filesystem>
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

// A token counts as the likeliest if its logit is at most this far below the largest one, which rounding explains.
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

// A temporary folder for the disk cache. Its path is empty if no folder could be made.
class Folder {
 public:
  Folder() {
    std::error_code error;
    std::string made = (std::filesystem::temp_directory_path(error) / "gemlet-check-XXXXXX").string();
    if (!error && mkdtemp(made.data())) path_ = made;
  }
  ~Folder() {
    std::error_code error;
    if (!path_.empty()) std::filesystem::remove_all(path_, error);
  }
  Folder(const Folder&) = delete;
  Folder& operator=(const Folder&) = delete;
  const std::string& path() const { return path_; }

 private:
  std::string path_;
};

// Earlier token sequences, whose first tokens become the beginning of new prompts. A new prompt takes either as many
// tokens as possible, or a random number.
class Beginnings {
 public:
  explicit Beginnings(Random& random) {
    for (int i = 0; i < 3; ++i) texts_.push_back(random_tokens(random, 70 + 40 * i));
  }
  Tokens some(Random& random) {
    const std::lock_guard<std::mutex> lock(mutex_);
    const Tokens& text = texts_[static_cast<size_t>(random.below(static_cast<int64_t>(texts_.size())))];
    const int64_t length = std::min<int64_t>(static_cast<int64_t>(text.size()), 150);
    return {text.begin(), text.begin() + (random.below(3) == 0 ? length : random.below(length + 1))};
  }
  void add(Tokens text) {
    const std::lock_guard<std::mutex> lock(mutex_);
    texts_.push_back(std::move(text));
  }

 private:
  std::mutex mutex_;
  std::vector<Tokens> texts_;
};

// Reads the tokens of one request to the end, or cancels the request after a while.
Written read(Engine& engine, Random& random, Beginnings& beginnings) {
  RequestOptions options;
  options.prompt = beginnings.some(random);
  const Tokens rest = random_tokens(random, 1 + random.below(60));
  options.prompt.insert(options.prompt.end(), rest.begin(), rest.end());
  options.sampler.temperature = 0;
  options.max_tokens = 1 + random.below(40);
  options.most_unread = 1 + random.below(8);
  options.priority = random.below(3);
  const bool masked = options.masked = random.below(3) == 0;  // the masks allow all tokens
  options.news = std::make_shared<Event>();
  if (random.below(10) == 0)
    options.deadline = RequestOptions::Clock::now() + std::chrono::milliseconds(random.below(9));
  const int64_t patience = random.below(5) == 0 ? random.below(20) : kContext;  // tokens until it is cancelled
  Written written = {options.prompt, {}, FinishReason::kNone};
  const std::shared_ptr<Event> news = options.news;
  const std::shared_ptr<Request> request = engine.submit(std::move(options));
  if (masked) request->set_mask(0, {});
  while (written.reason == FinishReason::kNone) {
    const uint32_t seen = news->value();
    const Request::Output output = request->take();
    written.generated.insert(written.generated.end(), output.ids.begin(), output.ids.end());
    written.reason = output.reason;
    if (masked && !output.ids.empty()) request->set_mask(static_cast<int64_t>(written.generated.size()), {});
    if (static_cast<int64_t>(written.generated.size()) >= patience) request->cancel();
    if (written.reason == FinishReason::kNone) engine.wait(*news, seen, std::chrono::milliseconds(50));
  }
  return written;
}

// Every token must be the likeliest one after the tokens before it.
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
      failed("token " + std::to_string(i) + " of a sequence is not the likeliest token");
    }
  }
}

}  // namespace

void check_engine(Tier tier) {
  begin_case("engine", tier, "under load");
  const std::shared_ptr<Model> model = small_model(tier, Format::kF32, KvFormat::kF32, 2);
  const Folder folder;
  std::vector<Written> texts;
  int64_t preemptions = 0, cached = 0, accepted = 0;
  {
    // The cache has room for one and a half of the longest requests, so that memory runs out often.
    const int64_t half = model->kv().layout().peak_bytes() / 2;
    PrefixCache::Options kept = {half};
    if (!folder.path().empty()) {
      kept.model.fill(1);
      kept.folder = std::make_shared<DiskFolder>(folder.path(), 20 * half);
    }
    Engine engine(model, {6, half, kept, DraftUse::kAlways});
    Random random(21);
    Beginnings beginnings(random);
    std::mutex mutex;
    std::exception_ptr error;
    std::vector<std::thread> readers;
    for (int reader = 0; reader < kReaders; ++reader) {
      readers.emplace_back([&, reader] {
        Random own(static_cast<uint64_t>(100 + reader));
        for (int i = 0; i < kRequests; ++i) {
          try {
            Written written = read(engine, own, beginnings);
            Tokens text = written.prompt;
            text.insert(text.end(), written.generated.begin(), written.generated.end());
            beginnings.add(std::move(text));
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
    accepted = engine.stats().accepted_tokens;
    cached = engine.stats().cached_tokens;
    // No request runs any more, so every block that is in use belongs to the prefix cache.
    const std::shared_ptr<PrefixCache> cache = engine.prefix_cache();
    while (cache->abandon()) {
    }
    const KvPool& kv = model->kv();
    if (kv.used_bytes() != kv.kept_bytes() || kv.used_bytes() != cache->bytes()) {
      failed(std::to_string(kv.used_bytes()) + " bytes of blocks are in use, " + std::to_string(kv.kept_bytes()) +
             " are kept, and the cache has " + std::to_string(cache->bytes()));
    }
  }
  if (model->kv().used_bytes() != 0) failed("blocks of keys and values were not given back");
  int64_t tokens = 0;
  for (const Written& written : texts) {
    check_text(model, written);
    tokens += static_cast<int64_t>(written.generated.size());
  }
  std::printf("engine: %zu requests, %lld tokens, %lld from the cache, %lld drafted, %lld preemptions\n", texts.size(),
              static_cast<long long>(tokens), static_cast<long long>(cached), static_cast<long long>(accepted),
              static_cast<long long>(preemptions));
}

}  // namespace gemlet::check
