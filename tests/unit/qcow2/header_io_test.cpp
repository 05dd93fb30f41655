#include "formats/qcow2/header_io.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <random>

#include "block/adapters/memory.h"
#include "block/filters/write_log.h"
#include "unit/qcow2/image_support.h"
#include "unit/sanitized.h"

namespace platter::qcow2 {
namespace {

using platter::testing::kSanitized;
using platter::testing::kThreadSanitized;
using testing::run;

Header header_for(std::string_view options) {
  Options parsed = *Options::parse_keyval(options);
  auto plan = plan_create(parsed, 1 << 20);
  EXPECT_OK(plan);
  return plan->header;
}

// Replaces one header by another one, and reads what each of many power cuts leaves.
class HeaderIo : public ::testing::Test {
 protected:
  // The parts that must be as in one of the two.
  static std::string told(const Header& header) {
    std::size_t unknown = 0;
    for (const auto& one : header.extensions.unknown)
      unknown += static_cast<std::size_t>(std::ranges::count(one.data, std::byte{7}));
    return fmt::format("{} {} {} {}", header.backing_file,
                       header.extensions.backing_format.value_or("-"), header.size, unknown);
  }

  void replace(const Header& before, const Header& after) {
    auto disk = std::make_shared<MemoryDisk>(1 << 20);
    const auto log = std::make_shared<WriteLog>();
    const auto node =
        *run([&] { return make_write_log_node("log", make_memory_node("disk", disk), log); });
    ASSERT_OK(run([&] { return put_header(*node, before); }));
    ASSERT_OK(run([&] { return node->flush(); }));
    const std::size_t from = log->moments();
    ASSERT_OK(run([&] { return put_header(*node, after); }));
    ASSERT_OK(run([&] { return node->flush(); }));
    std::mt19937 random(1);
    for (std::size_t cut = from; cut <= log->moments(); ++cut) {
      for (int i = 0; i < 60; ++i) {
        MemoryDisk left(1 << 20);
        replay(
            *log, cut, [&](const WriteLog::Entry&, std::uint64_t) { return random() % 2 == 0; },
            left);
        std::vector<std::byte> head(before.cluster_size());
        left.read(0, IoVec(std::span(head)));
        const auto got = parse_header(head, 1 << 20);
        ASSERT_OK(got);
        if (told(*got) != told(after)) {
          ASSERT_EQ(told(*got), told(before)) << "cut at " << cut;
          ASSERT_LT(cut, log->moments());
        }
      }
    }
    std::vector<std::byte> head(before.cluster_size());
    disk->read(0, IoVec(std::span(head)));
    const auto got = parse_header(head, 1 << 20);
    ASSERT_OK(got);
    EXPECT_EQ(*got, after);
  }
};

TEST_F(HeaderIo, APowerCutLeavesOneOrTheOther) {
  std::vector<Header> headers;
  for (const std::size_t length : {0u, 5u, 20u, 60u, 150u, 200u, 700u, 1023u}) {
    for (const char* format : {"", "raw", "qcow2", "parallels"}) {
      // With 368 and the longest format they end behind the first sector, where names lie; what is
      // longer does not fit into that.
      for (const std::size_t unknown : {0u, 40u, 368u, 700u, 1000u}) {
        Header header = header_for("cluster_size=8192");
        header.backing_file = std::string(length, static_cast<char>('a' + headers.size() % 26));
        if (format[0] != '\0' && length != 0) header.extensions.backing_format = format;
        if (unknown != 0)
          header.extensions.unknown.push_back({77, std::vector<std::byte>(unknown, std::byte{7})});
        if (unknown == 40) header.extensions.feature_names = known_feature_names();
        if (unknown == 1000) header.unknown_fields.resize(600, std::byte{1});
        header.size -= headers.size() * 512;
        headers.push_back(header);
      }
    }
  }
  // Some of all pairs, from all over: the step is prime.
  const std::size_t step = kThreadSanitized ? 3001 : kSanitized ? 307 : 61;
  const std::size_t pairs = headers.size() * headers.size();
  for (std::size_t pair = 0; pair < pairs && !HasFailure(); pair += step) {
    const Header& before = headers[pair / headers.size()];
    const Header& after = headers[pair % headers.size()];
    SCOPED_TRACE(fmt::format("{} -> {}", told(before), told(after)));
    replace(before, after);
  }
}

// The new name would lie where the header that is replaced has the end of its extensions.
TEST_F(HeaderIo, ANameKeepsOffExtensionsThatAreShown) {
  Header before = header_for("cluster_size=4096");
  before.backing_file = "b";
  before.extensions.backing_format = "parallels";
  before.extensions.unknown.push_back({77, std::vector<std::byte>(440, std::byte{7})});
  Header after = before;
  after.backing_file = std::string(20, 'a');
  after.extensions.backing_format.reset();
  after.extensions.unknown[0].data.resize(368);
  replace(before, after);
}

// What did not change is not written.
TEST_F(HeaderIo, AFlagIsOneSector) {
  Header header = header_for("cluster_size=65536");
  header.backing_file = std::string(900, 'b');
  const auto log = std::make_shared<WriteLog>();
  const auto node =
      *run([&] { return make_write_log_node("log", make_memory_node("disk", 1 << 20), log); });
  ASSERT_OK(run([&] { return put_header(*node, header); }));
  log->clear();
  header.incompatible_features = incompatible::kDirty;
  ASSERT_OK(run([&] { return put_header(*node, header); }));
  ASSERT_EQ(log->entries().size(), 1u);
  EXPECT_EQ(log->entries()[0].length, 512u);
}

}  // namespace
}  // namespace platter::qcow2
