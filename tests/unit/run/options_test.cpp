#include "tools/run/options.h"

#include <gtest/gtest.h>

#include <vector>

#include "block/node/options.h"

namespace platter::run {
namespace {

CommandLine parse(std::vector<const char*> arguments) {
  arguments.insert(arguments.begin(), "run");
  return parse_command_line("platter run", static_cast<int>(arguments.size()), arguments.data());
}

TEST(Disk, DefaultsAndEveryOption) {
  const auto plain = parse_disk("a.qcow2");
  ASSERT_TRUE(plain);
  EXPECT_EQ(plain->filename, "a.qcow2");
  EXPECT_EQ(plain->format, "");
  EXPECT_EQ(plain->queues, 1);
  EXPECT_EQ(plain->bus, DiskBus::kPci);
  EXPECT_EQ(plain->cache, CacheMode::kWriteback);
  EXPECT_FALSE(plain->read_only);

  const auto full = parse_disk(
      "a,,b.img,format=raw,readonly=on,snapshot=on,queues=4,cache=directsync,bus=virtio-mmio,"
      "discard=off,serial=disk,,1,encrypt.key-secret=s0");
  ASSERT_TRUE(full) << full.error().message();
  EXPECT_EQ(full->filename, "a,b.img");
  EXPECT_EQ(full->format, "raw");
  EXPECT_TRUE(full->read_only);
  EXPECT_TRUE(full->snapshot);
  EXPECT_EQ(full->queues, 4);
  EXPECT_EQ(full->cache, CacheMode::kDirectsync);
  EXPECT_EQ(full->bus, DiskBus::kMmio);
  EXPECT_FALSE(full->discard);
  EXPECT_EQ(full->key_secret, "s0");
  EXPECT_EQ(full->serial, "disk,1");
}

TEST(Disk, MistakesAreNamed) {
  for (const auto& [text, message] : std::vector<std::pair<const char*, const char*>>{
           {"", "names no file"},
           {"x,readonly", "'readonly' of 'x' is not of the form key=value"},
           {"x,readonly=maybe", "'readonly=maybe' is neither on nor off"},
           {"x,cache=fast", "'cache=fast' is none of: none, writeback"},
           {"x,bus=ide", "'bus=ide' is none of: virtio-pci, virtio-mmio"},
           {"x,queues=0", "'queues=0' is not a number from 1 to 64"},
           {"x,queues=65", "'queues=65'"},
           {"x,serial=123456789012345678901", "longer than 20 bytes"},
           {"x,colour=red", "unknown disk option 'colour'"}}) {
    const auto disk = parse_disk(text);
    ASSERT_FALSE(disk) << text;
    EXPECT_NE(disk.error().message().find(message), std::string::npos) << disk.error().message();
  }
}

TEST(Disk, NodeOptionsAfterADriverAreAName) {
  const auto disk = parse_disk(
      "driver=qcow2,,file.driver=file,,file.filename=a,,,,b.qcow2,queues=2,encrypt.key-secret=k");
  ASSERT_TRUE(disk) << disk.error().message();
  const auto node = Options::from_filename(disk->filename);
  ASSERT_TRUE(node);
  EXPECT_EQ(*node,
            *Options::parse_keyval("driver=qcow2,file.driver=file,file.filename=a,,b.qcow2"));
  EXPECT_EQ(disk->queues, 2);
  EXPECT_EQ(disk->key_secret, "k");
  EXPECT_EQ(disk->name, "driver=qcow2,file.driver=file,file.filename=a,,b.qcow2");
  EXPECT_EQ(parse_disk("./driver=x")->filename, "./driver=x");
  const auto single = parse_disk("driver=qcow2,file.filename=a.qcow2");
  ASSERT_FALSE(single);
  EXPECT_NE(single.error().message().find("write ',,' between them"), std::string::npos)
      << single.error().message();
}

TEST(CommandLine, EverythingTogether) {
  const CommandLine line =
      parse({"--memory", "1G", "--cpus", "3", "--kernel", "bz", "--initrd", "rd", "--append", "a b",
             "--disk", "one", "--disk", "two,readonly=on", "--snapshot", "--serial", "none"});
  ASSERT_FALSE(line.exit_code) << line.text;
  EXPECT_EQ(line.options.memory, 1ULL << 30);
  EXPECT_EQ(line.options.cpus, 3U);
  EXPECT_EQ(line.options.kernel, "bz");
  EXPECT_EQ(line.options.initrd, "rd");
  EXPECT_EQ(line.options.append, "a b");
  ASSERT_EQ(line.options.disks.size(), 2U);
  EXPECT_TRUE(line.options.disks[0].snapshot);
  EXPECT_TRUE(line.options.disks[1].read_only);
  EXPECT_EQ(line.options.serial, "none");
}

TEST(CommandLine, ThreadsFollowTheBusiestDiskWithinBounds) {
  RunOptions options;
  EXPECT_EQ(io_thread_count(options, 8), 1U);
  options.disks.resize(2);
  options.disks[0].queues = 64;
  EXPECT_EQ(io_thread_count(options, 8), 8U);
  EXPECT_EQ(io_thread_count(options, 64), kMaxIoThreads);
  EXPECT_EQ(io_thread_count(options, 0), 1U);
  options.disks[0].queues = 4;
  EXPECT_EQ(io_thread_count(options, 8), 4U);
  options.io_threads = 2;
  EXPECT_EQ(io_thread_count(options, 1), 2U);
}

TEST(CommandLine, HelpStopsWithZeroAndMistakesWithOne) {
  const CommandLine help = parse({"--help"});
  EXPECT_EQ(help.exit_code, 0);
  EXPECT_NE(help.text.find("cache=none|writeback"), std::string::npos);
  const CommandLine version = parse({"--version"});
  EXPECT_EQ(version.exit_code, 0);
  EXPECT_TRUE(version.text.starts_with("platter run version "));
  for (const std::vector<const char*>& wrong : {std::vector<const char*>{"--memory", "1M"},
                                                {"--memory", "x"},
                                                {"--memory", "3000001"},
                                                {"--cpus", "0"},
                                                {"--cpus", "65"},
                                                {"--initrd", "rd"},
                                                {"--disk", "x,y"},
                                                {"stray"},
                                                {"--kernel", "k", "--firmware", "f"},
                                                {"--nonsense"},
                                                {"--serial", "file:"},
                                                {"--json"},
                                                {"--io-threads", "17"}}) {
    const CommandLine line = parse(wrong);
    EXPECT_EQ(line.exit_code, 1) << wrong[0];
    EXPECT_NE(line.text.find("platter run: "), std::string::npos) << line.text;
  }
}

}  // namespace
}  // namespace platter::run
