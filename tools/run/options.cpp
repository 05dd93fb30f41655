#include "tools/run/options.h"

#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <array>
#include <cerrno>
#include <sstream>
#include <utility>

#include "block/node/options.h"

namespace platter::run {
namespace {

constexpr std::uint64_t kMinMemory = 2ULL << 20, kMaxMemory = 1ULL << 40;
constexpr unsigned kMaxCpus = 64, kMaxQueues = 64;

Result<bool> parse_switch(std::string_view key, std::string_view value) {
  if (value == "on") return true;
  if (value == "off") return false;
  return fail(EINVAL, "disk option '{}={}' is neither on nor off", key, value);
}

template <class T, std::size_t N>
Result<T> choose(std::string_view key, std::string_view value,
                 const std::array<std::pair<std::string_view, T>, N>& choices) {
  std::string names;
  for (const auto& [name, choice] : choices) {
    if (name == value) return choice;
    if (!names.empty()) names += ", ";
    names += name;
  }
  return fail(EINVAL, "disk option '{}={}' is none of: {}", key, value, names);
}

constexpr std::array<std::pair<std::string_view, CacheMode>, 5> kCacheModes{
    {{"none", CacheMode::kNone},
     {"writeback", CacheMode::kWriteback},
     {"writethrough", CacheMode::kWritethrough},
     {"unsafe", CacheMode::kUnsafe},
     {"directsync", CacheMode::kDirectsync}}};
constexpr std::array<std::pair<std::string_view, DiskBus>, 2> kBuses{
    {{"virtio-pci", DiskBus::kPci}, {"virtio-mmio", DiskBus::kMmio}}};

Result<void> set_disk_option(DiskOptions& disk, std::string_view key, std::string_view value) {
  const auto store = [](auto& target, auto result) -> Result<void> {
    PLATTER_TRY(result);
    target = *result;
    return {};
  };
  if (key == "format") {
    disk.format = value;
  } else if (key == "serial") {
    if (value.size() > 20) return fail(EINVAL, "disk serial '{}' is longer than 20 bytes", value);
    disk.serial = value;
  } else if (key == "encrypt.key-secret") {
    disk.key_secret = value;
  } else if (key == "readonly") {
    return store(disk.read_only, parse_switch(key, value));
  } else if (key == "snapshot") {
    return store(disk.snapshot, parse_switch(key, value));
  } else if (key == "discard") {
    return store(disk.discard, parse_switch(key, value));
  } else if (key == "cache") {
    return store(disk.cache, choose(key, value, kCacheModes));
  } else if (key == "bus") {
    return store(disk.bus, choose(key, value, kBuses));
  } else if (key == "queues") {
    const auto count = parse_size(value);
    if (!count || *count < 1 || *count > kMaxQueues) {
      return fail(EINVAL, "disk option 'queues={}' is not a number from 1 to {}", value,
                  kMaxQueues);
    }
    disk.queues = static_cast<std::uint16_t>(*count);
  } else {
    return fail(EINVAL,
                "unknown disk option '{}' (there are format, readonly, snapshot, queues, cache, "
                "bus, discard, serial, encrypt.key-secret)",
                key);
  }
  return {};
}

constexpr const char* kFooter =
    "A disk is FILE[,format=F][,readonly=on|off][,snapshot=on|off][,queues=N]\n"
    "  [,cache=none|writeback|writethrough|unsafe|directsync][,bus=virtio-pci|virtio-mmio]\n"
    "  [,discard=on|off][,serial=TEXT][,encrypt.key-secret=ID]; write ',,' for a comma in a file "
    "name.\n"
    "FILE is a name, json:{...}, or node options: driver=F,,file.filename=NAME[,,key=value...].\n"
    "Ctrl-A X on a terminal ends the machine when its serial port is there.\n"
    "\n"
    "Examples:\n"
    "  platter run --disk vm.qcow2,format=qcow2\n"
    "  platter run --kernel bzImage --initrd initrd.img --append 'console=ttyS0 root=/dev/vda' \\\n"
    "              --cpus 2 --memory 1G --disk vm.qcow2,format=qcow2,queues=2,cache=none\n"
    "\n"
    "Exit codes: 0 the guest switched off or reset itself, or Ctrl-A X; 1 could not start;\n"
    "  2 triple fault; 3 KVM could not go on; 4 a disk could not be flushed and closed;\n"
    "  130 SIGINT; 143 SIGTERM or SIGHUP.";

}  // namespace

Result<DiskOptions> parse_disk(std::string_view text) {
  auto parts = split_commas(text);
  DiskOptions disk;
  disk.filename = disk.name = parts.front();
  // Node options as --image-opts takes them; a name from here on, like any other.
  const bool spelled_as_options = disk.filename.starts_with("driver=");
  if (disk.filename.empty()) return fail(EINVAL, "disk '{}' names no file", text);
  for (std::size_t i = 1; i < parts.size(); ++i) {
    const std::string_view part = parts[i];
    const std::size_t equals = part.find('=');
    if (equals == std::string_view::npos) {
      return fail(EINVAL, "disk option '{}' of '{}' is not of the form key=value", part,
                  disk.filename);
    }
    auto set = set_disk_option(disk, part.substr(0, equals), part.substr(equals + 1));
    if (!set && spelled_as_options) {
      return forward_error(set,
                           "'{}' in a disk's options ends before ',{}'; write ',,' between them",
                           parts.front(), part);
    }
    PLATTER_TRY(set);
  }
  if (spelled_as_options) {
    auto node = Options::parse_keyval(parts.front());
    PLATTER_TRY(node);
    disk.filename = "json:" + node->to_json();
  }
  return disk;
}

unsigned io_thread_count(const RunOptions& options, unsigned processors) {
  if (options.io_threads != 0) return options.io_threads;
  unsigned queues = 1;
  for (const DiskOptions& disk : options.disks) queues = std::max<unsigned>(queues, disk.queues);
  return std::clamp(processors, 1U, std::min(queues, kMaxIoThreads));
}

CommandLine parse_command_line(const std::string& program, int argc, const char* const* argv) {
  CommandLine line;
  RunOptions& options = line.options;
  std::string memory = "256M";
  std::string cpu = "auto";
  std::string kernel, initrd, debug_log;
  std::vector<std::string> disks;
  bool snapshot = false;

  CLI::App app("Runs a small KVM machine on disks of any format that Platter knows.", program);
  app.footer(kFooter);
  app.get_formatter()->column_width(30);
  app.add_option("-m,--memory", memory, "RAM, such as 512M or 2G")->capture_default_str();
  app.add_option("--cpus", options.cpus, "virtual CPUs")
      ->capture_default_str()
      ->check(CLI::Range(1U, kMaxCpus));
  app.add_option("--cpu", cpu, "what the CPU offers: auto, host or basic (for slow nested KVM)")
      ->capture_default_str()
      ->check(CLI::IsMember({"auto", "host", "basic"}));
  auto* kernel_option =
      app.add_option("--kernel", kernel, "boot this Linux bzImage or PVH ELF file");
  app.add_option("--initrd", initrd, "initial RAM disk for the kernel")->needs(kernel_option);
  app.add_option("--append", options.append, "kernel command line")->needs(kernel_option);
  app.add_option("--firmware", options.firmware, "boot this firmware, when there is no kernel")
      ->capture_default_str()
      ->excludes(kernel_option);
  app.add_option("--disk", disks, "attach a disk (repeatable; see below)")->allow_extra_args(false);
  app.add_option("--object", options.objects,
                 "a secret for encrypted disks: secret,id=ID,data=TEXT|file=PATH (repeatable)")
      ->allow_extra_args(false);
  app.add_flag("--snapshot", snapshot, "snapshot=on for every disk: nothing is changed for good");
  app.add_option("--serial", options.serial, "the guest's serial port: stdio, file:PATH or none")
      ->capture_default_str();
  app.add_option("--debug-log", debug_log, "write the firmware's debug messages (port 0x402) here");
  app.add_option("--io-threads", options.io_threads, "threads that serve disk queues")
      ->check(CLI::Range(1U, kMaxIoThreads));
  auto* probe_option =
      app.add_flag("--probe", options.probe,
                   "only tell whether KVM works here and whether it is fast, then stop");
  app.add_flag("--json", options.json, "with --probe: answer in JSON")->needs(probe_option);
  app.set_version_flag("-V,--version", fmt::format("{} version {}\n", program, PLATTER_VERSION),
                       "print the version and exit");

  const auto refuse = [&line, &program](const std::string& message) {
    line.exit_code = 1;
    line.text = program + ": " + message + "\nTry '" + program + " --help'.\n";
  };
  try {
    app.parse(argc, argv);
  } catch (const CLI::CallForHelp&) {
    line.exit_code = 0;
    line.text = app.help();
    return line;
  } catch (const CLI::CallForVersion& version) {
    line.exit_code = 0;
    line.text = version.what();
    return line;
  } catch (const CLI::ParseError& error) {
    refuse(error.what());
    return line;
  }

  const auto size = parse_size(memory);
  if (!size || *size < kMinMemory || *size > kMaxMemory || *size % 4096 != 0) {
    refuse("--memory " + memory + " is not a size from 2M to 1T in whole pages");
    return line;
  }
  if (options.serial == "file:") {
    refuse("--serial file: does not say which file");
    return line;
  }
  options.memory = *size;
  options.cpu = cpu == "host"    ? CpuChoice::kHost
                : cpu == "basic" ? CpuChoice::kBasic
                                 : CpuChoice::kAuto;
  if (!kernel.empty()) options.kernel = kernel;
  if (!initrd.empty()) options.initrd = initrd;
  if (!debug_log.empty()) options.debug_log = debug_log;
  for (const std::string& text : disks) {
    auto disk = parse_disk(text);
    if (!disk) {
      refuse(disk.error().message());
      return line;
    }
    if (snapshot) disk->snapshot = true;
    options.disks.push_back(std::move(*disk));
  }
  return line;
}

}  // namespace platter::run
