#include "powercut/rig.h"

#include <fmt/format.h>

#include "block/adapters/memory.h"
#include "block/base/bytes.h"
#include "block/crypto/secret.h"
#include "block/filters/fault.h"
#include "block/node/open_state.h"
#include "formats/qcow2/create.h"
#include "formats/qcow2/layout.h"
#include "formats/qcow2/storage_io.h"
#include "tools/img/commands.h"

namespace platter::powercut {
namespace {

using Kind = Operation::Kind;
using Backing = Operation::Backing;

// Backing images that do not change. The second one differs from the first in some places.
void make_backings(const Shape& shape) {
  const std::uint64_t sectors = (23 * shape.cluster + shape.cluster / 2) / kSector;
  std::vector<std::byte> bytes(sectors * kSector);
  for (std::uint64_t s = 0; s < sectors; ++s)
    put_stamp(std::span(bytes).subspan(s * kSector, kSector), 1, s);
  make_memory_disk("powercut-backing", bytes.size())->write(0, IoVec(std::span(bytes)));
  for (std::uint64_t s = 0; s < sectors; ++s) {
    if (s * kSector / shape.cluster % 3 == 0)
      put_stamp(std::span(bytes).subspan(s * kSector, kSector), 2, s);
  }
  make_memory_disk("powercut-other", bytes.size())->write(0, IoVec(std::span(bytes)));
}

std::uint64_t backed_sectors(const Operation& operation, const Shape& shape) {
  switch (operation.backing) {
    case Backing::kNone:
      return 0;
    case Backing::kRaw:
    case Backing::kChained:
      return (23 * shape.cluster + shape.cluster / 2) / kSector;
    case Backing::kOverlaid:
    case Backing::kRawDisk:
      return 24 * shape.cluster / kSector;
  }
  return 0;
}

Task<Result<void>> format(BlockNode& node, const Operation& operation, const Shape& shape,
                          bool top) {
  std::string text = shape.create_options();
  if (operation.create[0] != '\0') text += fmt::format(",{}", operation.create);
  if (top && operation.backing == Backing::kRaw)
    text += ",backing_file=memory:powercut-backing,backing_fmt=raw";
  if (!top && operation.backing == Backing::kChained)
    text += ",backing_file=memory:powercut-other,backing_fmt=raw";
  // By what it says itself, which streaming changes.
  if (top && operation.backing == Backing::kChained)
    text += R"(,backing_file=json:{"driver":"qcow2",,"file":"powercut-1"},backing_fmt=qcow2)";
  if (top && operation.backing == Backing::kRawDisk)
    text += ",backing_file=powercut-base,backing_fmt=raw";
  if (top && operation.backing == Backing::kOverlaid)
    text += ",backing_file=powercut-base,backing_fmt=qcow2";
  // A short key, found soon.
  if (top && operation.encrypted) {
    text += fmt::format(
        ",encrypt.format=luks,encrypt.key-secret={},encrypt.iter-time=0,encrypt.cipher-alg=aes-128,"
        "encrypt.cipher-mode=cbc,encrypt.ivgen-alg=essiv",
        kOldKey);
  }
  if (top && operation.data_file) text += ",data_file=powercut-1";
  auto options = Options::parse_keyval(text);
  PLATTER_CO_TRY(options);
  auto plan = qcow2::plan_create(*options, operation.size(shape));
  PLATTER_CO_TRY(plan);
  if (operation.encrypted && top) {
    auto key = plan->encryption.key();
    PLATTER_CO_TRY(key);
    auto volume = co_await crypto::make_luks_volume_aside(plan->encryption.luks, std::move(*key));
    PLATTER_CO_TRY(volume);
    plan->encryption_header = std::move(volume->area);
  }
  auto written = co_await qcow2::write_image(node, std::move(*plan));
  co_return written;
}

Result<void> run_command(const Operation& operation) {
  const std::string top = top_options(operation);
  std::vector<std::string> words(operation.command.begin(), operation.command.end());
  for (std::string& word : words) {
    if (word == "TOP") word = top;
  }
  std::vector<char*> argv;
  for (std::string& word : words) argv.push_back(word.data());
  argv.push_back(nullptr);
  const int argc = static_cast<int>(words.size());
  int status = 1;
  if (words[0] == "commit") status = img::run_commit(argc, argv.data());
  if (words[0] == "rebase") status = img::run_rebase(argc, argv.data());
  if (words[0] == "stream") status = img::run_stream(argc, argv.data());
  if (status != 0) return fail(EIO, "{} ended with {}", words[0], status);
  return {};
}

Task<Result<void>> repair(BlockNode& node) {
  const CheckRequest request{.fix_leaks = true, .fix_errors = true, .report = {}};
  auto checked = co_await node.driver().checker()->check(request);
  PLATTER_CO_TRY(checked);
  if (checked->corruptions + checked->check_errors != 0)
    co_return fail(EIO, "{} errors are left", checked->corruptions);
  co_return {};
}

// From now on it shows stamp 1; where it does already it is not written to.
Task<Result<void>> fill_base(Edge node, std::uint64_t sectors) {
  const Buffer shown(kSector);
  const Buffer data(kSector);
  for (std::uint64_t s = 0; s < sectors; ++s) {
    auto read = co_await node->read(s * kSector, shown.iov());
    PLATTER_CO_TRY(read);
    if (get_stamp(shown.span(), s) == Stamp{1}) continue;
    put_stamp(data.span(), 1, s);
    auto written = co_await node->write(s * kSector, data.iov());
    PLATTER_CO_TRY(written);
  }
  auto closed = co_await node.detach();
  co_return closed;
}

Task<Result<void>> prepare_guest(const Operation& operation, const Shape& shape, History& history,
                                 unsigned seed, MemoryDisk& disk,
                                 std::vector<std::byte>& left_open) {
  auto opened = co_await open_image(top_options(operation), true);
  PLATTER_CO_TRY(opened);
  History before = history;
  Guest guest(std::move(*opened), before, nullptr, shape.cluster, seed);
  auto done = co_await operation.prepare(guest);
  if (done) done = co_await guest.flush();
  left_open.resize(disk.size());
  disk.read(0, IoVec(std::span(left_open)));
  auto closed = co_await guest.close();
  if (done) done = std::move(closed);
  history.begin_with(before);
  co_return done;
}

Task<Result<void>> act(const Operation& operation, const Shape& shape, History& history,
                       WriteLog* log, unsigned seed) {
  const bool repairs = operation.repairs();
  auto opened = co_await open_image(top_options(operation), true, repairs);
  PLATTER_CO_TRY(opened);
  Guest guest(std::move(*opened), history, log, shape.cluster, seed);
  Result<void> done;
  if (repairs) {
    done = co_await repair(guest.node());
    if (done) {
      history.note_repaired(guest.moment());
      done = co_await guest.write(70 * guest.cluster(), kSector);
    }
  } else {
    done = co_await operation.act(guest);
  }
  auto closed = co_await guest.close();
  if (done) done = std::move(closed);
  co_return done;
}

}  // namespace

void Grounds::add(NodePtr node) {
  // Held, so that it does not close with the image over it.
  const Permissions none{.need = 0, .shared = perm::kAll};
  detail::remember_node(node);
  auto edge = run([&] { return Edge::attach(std::move(node), "the power-cut rig", none); });
  if (edge) edges_.push_back(std::move(*edge));
}

void make_secrets() {
  for (const char* id : {kOldKey, kNewKey}) {
    const auto added = crypto::add_secret(id, crypto::SecretBytes::of(std::string_view(id)));
    static_cast<void>(added);  // it is there already
  }
}

std::string ground_name(unsigned disk) { return fmt::format("powercut-{}", disk); }

unsigned disks_of(const Operation& operation) {
  return operation.has_middle() || operation.backing == Backing::kRawDisk || operation.data_file
             ? 2
             : 1;
}

std::string top_options(const Operation& operation, std::string_view secret) {
  std::string text = "driver=qcow2,file=powercut-0,discard=unmap";
  if (operation.encrypted) text += fmt::format(",encrypt.key-secret={}", secret);
  if (operation.data_file) text += ",data-file=powercut-1";
  if (operation.backing == Backing::kRawDisk) text += ",backing.driver=raw,backing.file=powercut-1";
  if (operation.backing == Backing::kOverlaid)
    text += ",backing.driver=qcow2,backing.file=powercut-1";
  return text;
}

std::string base_options() { return "driver=qcow2,file=powercut-1"; }

Task<Result<Edge>> open_image(std::string options, bool writable, bool for_check) {
  OpenRequest request;
  auto parsed = Options::parse_keyval(options);
  PLATTER_CO_TRY(parsed);
  request.options = std::move(*parsed);
  request.flags.read_only = !writable;
  request.flags.check = for_check;
  request.permissions = writable ? Permissions::writer() : Permissions::reader();
  auto opened = co_await open_node(std::move(request));
  co_return std::move(opened);
}

Result<Prepared> prepare(const Operation& operation, const Shape& shape, unsigned seed) {
  make_backings(shape);
  make_secrets();
  Prepared prepared{.bytes = {},
                    .history = History(operation.size(shape), backed_sectors(operation, shape))};
  prepared.bytes.resize(disks_of(operation));
  if (operation.kind == Kind::kCreate) return prepared;
  std::vector<std::shared_ptr<MemoryDisk>> disks;
  Grounds grounds;
  for (unsigned i = 0; i < disks_of(operation); ++i) {
    disks.push_back(std::make_shared<MemoryDisk>(0));
    NodePtr node = make_memory_node(ground_name(i), disks[i]);
    grounds.add(node);
    if (i == 1 && operation.backing == Backing::kRawDisk) {
      const std::uint64_t sectors = backed_sectors(operation, shape);
      std::vector<std::byte> bytes(sectors * kSector);
      for (std::uint64_t s = 0; s < sectors; ++s)
        put_stamp(std::span(bytes).subspan(s * kSector, kSector), 1, s);
      disks[i]->write(0, IoVec(std::span(bytes)));
      continue;
    }
    if (i == 1 && operation.data_file) {
      disks[i]->resize(operation.size(shape));
      continue;
    }
    auto formatted = run([&] { return format(*node, operation, shape, i == 0); });
    PLATTER_TRY(formatted);
  }
  if (operation.has_middle()) {
    auto base = run([&] { return open_image(base_options(), true); });
    PLATTER_TRY(base);
    auto filled =
        run([&] { return fill_base(std::move(*base), backed_sectors(operation, shape)); });
    PLATTER_TRY(filled);
  }
  if (operation.kind == Kind::kReplace) {
    prepared.bytes[0].resize(disks[0]->size());
    disks[0]->read(0, IoVec(std::span(prepared.bytes[0])));
    return prepared;
  }
  std::vector<std::byte> left_open;
  auto done = run([&] {
    return prepare_guest(operation, shape, prepared.history, seed, *disks[0], left_open);
  });
  PLATTER_TRY(done);
  if (operation.damage) operation.damage(*disks[0], shape, prepared.history);
  for (std::size_t i = 0; i < disks.size(); ++i) {
    prepared.bytes[i].resize(disks[i]->size());
    disks[i]->read(0, IoVec(std::span(prepared.bytes[i])));
  }
  if (operation.kind == Kind::kDirty) prepared.bytes[0] = std::move(left_open);
  return prepared;
}

Result<void> perform(const Operation& operation, const Shape& shape, History& history,
                     WriteLog* log, unsigned seed) {
  if (operation.creates()) {
    const NodePtr ground = find_node(ground_name(0));
    auto made = run([&] { return format(*ground, operation, shape, true); });
    return made;
  }
  if (!operation.command.empty()) return run_command(operation);
  return run([&] { return act(operation, shape, history, log, seed); });
}

Result<Recording> record(const Operation& operation, const Shape& shape, unsigned seed) {
  auto prepared = prepare(operation, shape, seed);
  PLATTER_TRY(prepared);
  Recording recording{.before = std::move(prepared->bytes),
                      .history = std::move(prepared->history)};
  Grounds grounds;
  for (unsigned i = 0; i < disks_of(operation); ++i) {
    auto disk = std::make_shared<MemoryDisk>(0);
    disk->write(0, IoVec(std::span(recording.before[i])));
    auto logging =
        run([&] { return make_write_log_node("", make_memory_node("", disk), recording.log, i); });
    PLATTER_TRY(logging);
    // For operations that halt one request and go on with others.
    auto halting = run([&] { return make_fault_node(ground_name(i), std::move(*logging)); });
    PLATTER_TRY(halting);
    grounds.add(std::move(*halting));
  }
  auto done = perform(operation, shape, recording.history, recording.log.get(), seed);
  PLATTER_TRY(done);
  return recording;
}

}  // namespace platter::powercut
