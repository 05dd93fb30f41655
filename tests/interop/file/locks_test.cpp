// Our byte locks and QEMU's exclude each other, and `-U` looks on.
#include <fcntl.h>
#include <gtest/gtest.h>
#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

#include <string>
#include <vector>

#include "block/exec/executor.h"
#include "block/node/graph.h"
#include "unit/adapters/adapter_test.h"

namespace platter {
namespace {

bool installed(const std::string& tool) { return access(("/usr/bin/" + tool).c_str(), X_OK) == 0; }

// A child process with pipes to its input and from its output and errors.
class Child {
 public:
  explicit Child(const std::vector<std::string>& command) {
    int in[2];
    int out[2];
    EXPECT_EQ(pipe2(in, O_CLOEXEC), 0);
    EXPECT_EQ(pipe2(out, O_CLOEXEC), 0);
    posix_spawn_file_actions_t actions;
    posix_spawn_file_actions_init(&actions);
    posix_spawn_file_actions_adddup2(&actions, in[0], 0);
    posix_spawn_file_actions_adddup2(&actions, out[1], 1);
    posix_spawn_file_actions_adddup2(&actions, out[1], 2);
    std::vector<std::string> words = command;
    std::vector<char*> argv;
    for (std::string& word : words) argv.push_back(word.data());
    argv.push_back(nullptr);
    EXPECT_EQ(posix_spawnp(&pid_, argv[0], &actions, nullptr, argv.data(), environ), 0);
    posix_spawn_file_actions_destroy(&actions);
    close(in[0]);
    close(out[1]);
    in_ = in[1];
    out_ = out[0];
  }
  ~Child() {
    if (pid_ > 0) finish();
  }
  Child(const Child&) = delete;
  Child& operator=(const Child&) = delete;

  // Reads output up to `text`; false when it ended before.
  bool wait_for(const std::string& text) {
    char c;
    while (output_.find(text) == std::string::npos) {
      if (::read(out_, &c, 1) != 1) return false;
      output_ += c;
    }
    return true;
  }
  // Ends its input, reads the rest of its output, and gives its exit code.
  int finish() {
    close(in_);
    char buffer[4096];
    for (ssize_t n; (n = ::read(out_, buffer, sizeof buffer)) > 0;) {
      output_.append(buffer, static_cast<std::size_t>(n));
    }
    close(out_);
    int status = 0;
    waitpid(pid_, &status, 0);
    pid_ = 0;
    return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
  }
  const std::string& output() const { return output_; }

 private:
  pid_t pid_ = 0;
  int in_ = -1;
  int out_ = -1;
  std::string output_;
};

class Locks : public ::testing::Test {
 protected:
  void SetUp() override {
    for (const char* tool : {"qemu-io", "qemu-img"}) {
      if (!installed(tool)) GTEST_SKIP() << "needs " << tool << " (Debian package qemu-utils)";
    }
    // QEMU's raw format shares everything; its qcow2 is strict, so that is what the image is. We
    // open the file that it lies in.
    Child create({"qemu-img", "create", "-q", "-f", "qcow2", path_, "1M"});
    ASSERT_EQ(create.finish(), 0) << create.output();
    contents_ = read_file(path_);
    auto executor = Executor::create();
    ASSERT_TRUE(executor);
    executor_ = std::move(*executor);
  }

  Result<Edge> open(OpenFlags flags, const char* locking = "auto") {
    OpenRequest request;
    request.options = filename_options(path_);
    request.options.set("driver", "file");
    request.options.set("locking", locking);
    request.flags = flags;
    request.permissions = flags.read_only ? Permissions::reader() : Permissions::writer();
    return executor_->block_on([&] { return open_node(request); });
  }
  void close(Edge& edge) {
    EXPECT_TRUE(executor_->block_on([&] { return edge.detach(); }));
  }
  // Opens and closes; empty, or the error.
  std::string attempt(OpenFlags flags, const char* locking = "auto") {
    Result<Edge> edge = open(flags, locking);
    if (!edge) return edge.error().message();
    close(*edge);
    return {};
  }
  std::string qemu_img_info(bool force_share) {
    std::vector<std::string> command{"qemu-img", "info", "-f", "qcow2", path_};
    if (force_share) command.insert(command.begin() + 2, "-U");
    Child child(command);
    return child.finish() == 0 ? std::string() : child.output();
  }

  std::string hint() const { return "lock: " + hint_; }
  // QEMU's own words.
  std::string hint_of_qemu() const { return "lock\n" + hint_; }

  ScratchDir dir_;
  std::string path_ = dir_ / "disk";
  std::string contents_;
  std::string hint_ = "Is another process using the image [" + path_ + "]?";
  std::unique_ptr<Executor> executor_;
};

constexpr OpenFlags kReader{.read_only = true};
constexpr OpenFlags kWriter{.read_only = false};
constexpr OpenFlags kOnlooker{.read_only = true, .force_share = true};

bool ends_with(const std::string& text, const std::string& end) {
  return text.size() >= end.size() && text.compare(text.size() - end.size(), end.size(), end) == 0;
}

TEST_F(Locks, QemusWriterKeepsUsOut) {
  Child qemu({"qemu-io", "-f", "qcow2", path_});
  ASSERT_TRUE(qemu.wait_for("qemu-io> ")) << qemu.output();
  EXPECT_TRUE(ends_with(attempt(kReader), "Failed to get shared \"write\" " + hint()));
  EXPECT_TRUE(ends_with(attempt(kWriter), "Failed to get \"write\" " + hint()));
  EXPECT_EQ(attempt(kOnlooker), "");
  EXPECT_EQ(attempt(kWriter, "off"), "");
  EXPECT_TRUE(ends_with(attempt(kWriter, "on"), "Failed to get \"write\" " + hint()));
  EXPECT_EQ(qemu.finish(), 0);
  EXPECT_EQ(attempt(kReader), "");
  EXPECT_EQ(attempt(kWriter), "");
}

TEST_F(Locks, QemusReaderSharesReading) {
  Child qemu({"qemu-io", "-r", "-f", "qcow2", path_});
  ASSERT_TRUE(qemu.wait_for("qemu-io> ")) << qemu.output();
  EXPECT_EQ(attempt(kReader), "");
  EXPECT_TRUE(ends_with(attempt(kWriter), "Failed to get \"write\" " + hint()));
}

TEST_F(Locks, OurWriterKeepsQemuOut) {
  Result<Edge> edge = open(kWriter);
  ASSERT_TRUE(edge) << edge.error().message();
  EXPECT_EQ(qemu_img_info(false), "qemu-img: Could not open '" + path_ +
                                      "': Failed to get shared \"write\" " + hint_of_qemu() + "\n");
  EXPECT_EQ(qemu_img_info(true), "");
  Child writer({"qemu-io", "-f", "qcow2", "-c", "write 0 512", path_});
  EXPECT_EQ(writer.finish(), 1);
  EXPECT_NE(writer.output().find("Failed to get \"write\" lock"), std::string::npos);
  close(*edge);
  EXPECT_EQ(qemu_img_info(false), "");
}

TEST_F(Locks, OurReaderSharesReading) {
  Result<Edge> edge = open(kReader);
  ASSERT_TRUE(edge) << edge.error().message();
  EXPECT_EQ(qemu_img_info(false), "");
  Child writer({"qemu-io", "-f", "qcow2", "-c", "write 0 512", path_});
  EXPECT_EQ(writer.finish(), 1);
  EXPECT_NE(writer.output().find("Failed to get \"write\" lock"), std::string::npos);
  close(*edge);
}

TEST_F(Locks, CreatingOverAnImageInUseIsRefused) {
  Child qemu({"qemu-io", "-f", "qcow2", path_});
  ASSERT_TRUE(qemu.wait_for("qemu-io> ")) << qemu.output();
  const Result<void> created =
      executor_->block_on([&] { return create_protocol(path_, 4096, Options()); });
  ASSERT_FALSE(created);
  EXPECT_TRUE(ends_with(created.error().message(), "Failed to get \"write\" " + hint()));
  EXPECT_EQ(qemu.finish(), 0);
  EXPECT_TRUE(read_file(path_) == contents_);
}

}  // namespace
}  // namespace platter
