// virtio-blk requests, good and bad, in every shape (C19; HOSTILE V-1, V-5, V-8, V-10, V-11).
#include "virtio/blk_request.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <array>
#include <atomic>
#include <limits>

#include "unit/virtio/blk_fixture.h"

namespace platter::virtio {
namespace {

using ::testing::HasSubstr;
using ::testing::IsEmpty;
using testing::Piece;

constexpr std::uint64_t kSectors = BlkFixture::kSize / kSectorSize;

struct BlkRequestTest : BlkFixture {
  void SetUp() override { bring_up(); }
};

TEST_F(BlkRequestTest, WritesAndReads) {
  const auto data = pattern(8192, 1);
  EXPECT_EQ(driver->write(7, data).status, kOk);
  EXPECT_EQ(on_disk(7 * 512, data.size()), data);
  const auto reply = driver->read(7, data.size());
  EXPECT_EQ(reply.status, kOk);
  EXPECT_EQ(reply.data, data);
  EXPECT_EQ(reply.written, data.size() + 1);
}

TEST_F(BlkRequestTest, TheLastSector) {
  const auto data = pattern(512, 2);
  EXPECT_EQ(driver->write(kSectors - 1, data).status, kOk);
  EXPECT_EQ(driver->read(kSectors - 1, 512).data, data);
}

TEST_F(BlkRequestTest, PartialSectorsAreRefused) {
  for (const std::size_t size : {1u, 511u, 513u, 1023u}) {
    EXPECT_EQ(driver->read(0, size).status, kIoError) << size;
    EXPECT_EQ(driver->write(0, pattern(size, 1)).status, kIoError) << size;
  }
  EXPECT_EQ(disk->reads + disk->writes, 0u);
}

TEST_F(BlkRequestTest, RangesBeyondTheEndAreRefused) {
  const auto data = pattern(1024, 1);
  constexpr std::uint64_t kMax = std::numeric_limits<std::uint64_t>::max();
  // Among them: sector * 512 wraps to 0, and to the last sector.
  for (const std::uint64_t sector : {kSectors - 1, kSectors, std::uint64_t{1} << 55,
                                     (std::uint64_t{1} << 55) + kSectors - 2, kMax, kMax - 1}) {
    const auto reply = driver->read(sector, 1024);
    EXPECT_EQ(reply.status, kIoError) << sector;
    EXPECT_EQ(reply.written, 0u) << "no data was written before the status";
    EXPECT_EQ(driver->write(sector, data).status, kIoError) << sector;
  }
  EXPECT_EQ(disk->reads + disk->writes, 0u);
}

TEST_F(BlkRequestTest, UnknownTypesAreUnsupported) {
  // SCSI commands, the lifetime, secure erase and zones are not offered; nor are barriers.
  for (const std::uint32_t type : {2u, 3u, 5u, 10u, 14u, 15u, 0x80000000u, 0x80000001u, ~0u}) {
    EXPECT_EQ(driver->call(type, 0, {}, 512).status, kUnsupported) << type;
  }
}

TEST_F(BlkRequestTest, FlushReachesTheDisk) {
  driver->write(0, pattern(512, 1));
  EXPECT_EQ(driver->flush().status, kOk);
  EXPECT_EQ(disk->flushes, 1u);
  EXPECT_EQ(driver->flush().written, 1u);
}

TEST_F(BlkRequestTest, StorageErrorsReachTheGuestAndTheReporter) {
  disk->fail_with = EIO;
  const auto reply = driver->read(2, 512);
  EXPECT_EQ(reply.status, kIoError);
  EXPECT_EQ(reply.written, 0u);
  EXPECT_EQ(driver->write(0, pattern(512, 1)).status, kIoError);
  EXPECT_EQ(driver->flush().status, kIoError);
  EXPECT_EQ(driver->ranges(kBlkDiscard, {{0, 8, 0}}).status, kIoError);
  EXPECT_EQ(driver->ranges(kBlkWriteZeroes, {{0, 8, 0}}).status, kIoError);
  disk->fail_with = 0;
  EXPECT_EQ(driver->read(0, 512).status, kOk) << "still alive";
  ASSERT_EQ(reports().size(), 5u);
  EXPECT_THAT(reports()[0], HasSubstr("read of 512 bytes at 1024: Input/output error"));
}

// Every way to cut header, data and status into descriptors.
TEST_F(BlkRequestTest, AnyDescriptorSplitWillDo) {
  const auto data = pattern(512, 3);
  for (unsigned cut = 1; cut < 16; ++cut) {
    // Header in two pieces, the second together with the data when they are neighbours.
    const std::size_t mark = guest->mark();
    const std::uint64_t header = driver->put_header(kBlkOut, cut);
    const std::uint64_t body = driver->put(data);
    const std::uint64_t status = guest->allocate(1);
    ASSERT_EQ(body, header + 16);
    *guest->at(status) = std::byte{0xee};
    driver->ring().add({{header, cut, false},
                        {header + cut, 16 - cut + 100, false},
                        {body + 100, 412, false},
                        {status, 1, true}});
    driver->publish();
    driver->wait();
    EXPECT_EQ(*guest->at(status), std::byte{kOk}) << cut;
    EXPECT_EQ(on_disk(cut * 512, 512), data) << cut;
    guest->release(mark);
  }
  // The status byte in one descriptor with the data, and data in single bytes.
  const std::uint64_t header = driver->put_header(kBlkIn, 1);
  const std::uint64_t in = guest->allocate(600);
  std::vector<Piece> pieces{{header, 16, false}};
  for (std::uint32_t i = 0; i < 20; ++i) pieces.push_back({in + i, 1, true});
  pieces.push_back({in + 20, 493, true});
  driver->ring().add_indirect(pieces);
  driver->publish();
  EXPECT_EQ(driver->wait().length, 513u);
  EXPECT_EQ(std::memcmp(guest->at(in), data.data(), 512), 0);
  EXPECT_EQ(guest->at(in)[512], std::byte{kOk});
}

TEST_F(BlkRequestTest, HeaderAndDataInManyScatteredPieces) {
  std::vector<Piece> pieces;
  const std::uint64_t header = driver->put_header(kBlkOut, 3);
  for (std::uint32_t i = 0; i < 16; ++i) {
    const std::uint64_t at = guest->allocate(1, 32);
    *guest->at(at) = *guest->at(header + i);
    pieces.push_back({at, 1, false});
  }
  const auto data = pattern(1024, 9);
  for (std::uint32_t i = 0; i < 32; ++i) {
    const std::uint64_t at = guest->allocate(32, 64);
    std::memcpy(guest->at(at), data.data() + i * 32, 32);
    pieces.push_back({at, 32, false});
  }
  const std::uint64_t status = guest->allocate(1);
  pieces.push_back({status, 1, true});
  driver->ring().add_indirect(pieces);
  driver->publish();
  driver->wait();
  EXPECT_EQ(on_disk(3 * 512, 1024), data);
}

TEST_F(BlkRequestTest, AShortHeaderIsAnError) {
  const std::uint64_t header = driver->put_header(kBlkIn, 0);
  const std::uint64_t in = guest->allocate(513);
  driver->ring().add({{header, 15, false}, {in, 513, true}});
  driver->publish();
  driver->wait();
  EXPECT_EQ(guest->at(in)[512], std::byte{kIoError});
  // No header at all.
  driver->ring().add({{in, 513, true}});
  guest->at(in)[512] = std::byte{0xee};
  driver->publish();
  driver->wait();
  EXPECT_EQ(guest->at(in)[512], std::byte{kIoError});
  EXPECT_EQ(driver->read(0, 512).status, kOk);
}

TEST_F(BlkRequestTest, NoPlaceForAStatusBreaksTheDevice) {
  const std::uint64_t header = driver->put_header(kBlkFlush, 0);
  driver->ring().add({{header, 16, false}});
  driver->publish();
  driver->wait_config();
  EXPECT_NE(device->status() & kStatusNeedsReset, 0);
  EXPECT_THAT(reports()[0], HasSubstr("no status byte"));
  EXPECT_EQ(disk->flushes, 0u);
  driver->reset();
  bring_up();
  EXPECT_EQ(driver->read(0, 512).status, kOk);
}

TEST_F(BlkRequestTest, ReadOnlyStatusByteIsAReadableOne) {
  // The status byte offered as readable: there is no writable part at all.
  const std::uint64_t header = driver->put_header(kBlkFlush, 0);
  driver->ring().add({{header, 16, false}, {guest->allocate(1), 1, false}});
  driver->publish();
  driver->wait_config();
}

TEST_F(BlkRequestTest, RequestsWithoutData) {
  EXPECT_EQ(driver->read(0, 0).status, kOk);
  EXPECT_EQ(driver->write(0, {}).status, kOk);
  EXPECT_EQ(driver->read(kSectors + 1, 0).status, kIoError);
  EXPECT_EQ(disk->reads + disk->writes, 0u);
}

// Discard and write-zeroes -----------------------------------------------------------------------

TEST_F(BlkRequestTest, DiscardReachesTheDisk) {
  driver->write(0, pattern(65536, 1));
  EXPECT_EQ(driver->ranges(kBlkDiscard, {{0, 64, 0}, {100, 8, 0}}).status, kOk);
  EXPECT_EQ(disk->discards, 2u);
}

TEST_F(BlkRequestTest, WriteZeroesReadsAsZeroes) {
  driver->write(0, pattern(8192, 1));
  EXPECT_EQ(driver->ranges(kBlkWriteZeroes, {{2, 4, 0}}).status, kOk);
  EXPECT_EQ(disk->unmaps, 0u);
  EXPECT_EQ(on_disk(1024, 2048), std::vector<std::byte>(2048));
  EXPECT_NE(on_disk(0, 1024), std::vector<std::byte>(1024));
  EXPECT_NE(on_disk(3072, 512), std::vector<std::byte>(512));
  EXPECT_EQ(driver->ranges(kBlkWriteZeroes, {{2, 4, kBlkRangeUnmap}}).status, kOk);
  EXPECT_EQ(disk->unmaps, 1u);
}

TEST_F(BlkRequestTest, BadRangesChangeNothing) {
  const std::uint32_t most = BlkDevice::kMaxRangeSectors;
  for (const std::uint32_t type : {kBlkDiscard, kBlkWriteZeroes}) {
    EXPECT_EQ(driver->ranges(type, {}).status, kIoError);
    EXPECT_EQ(driver->ranges(type, {{0, 1, 0}, {kSectors, 1, 0}}).status, kIoError);
    EXPECT_EQ(driver->ranges(type, {{kSectors - 1, 2, 0}}).status, kIoError);
    EXPECT_EQ(driver->ranges(type, {{~std::uint64_t{0}, 2, 0}}).status, kIoError);
    EXPECT_EQ(driver->ranges(type, {{0, most + 1, 0}}).status, kIoError);
    EXPECT_EQ(driver->ranges(type, {{0, 0xffffffff, 0}}).status, kIoError);
    EXPECT_EQ(driver->ranges(type, {{std::uint64_t{1} << 55, 8, 0}}).status, kIoError);
    EXPECT_EQ(driver->ranges(type, {{0, 8, 2}}).status, kUnsupported);
    EXPECT_EQ(driver->ranges(type, {{0, 8, 0}, {0, 8, 0x80000000}}).status, kUnsupported);
    EXPECT_EQ(driver->call(type, 0, pattern(15, 0), 0).status, kIoError);
    EXPECT_EQ(driver->call(type, 0, std::vector<std::byte>(17), 0).status, kIoError);
    const std::vector<BlkRange> many(BlkDevice::kMaxRangeSegments + 1, BlkRange{0, 1, 0});
    EXPECT_EQ(driver->ranges(type, many).status, kIoError);
  }
  EXPECT_EQ(driver->ranges(kBlkDiscard, {{0, 8, kBlkRangeUnmap}}).status, kUnsupported);
  EXPECT_EQ(disk->discards + disk->zeroes, 0u);
}

TEST_F(BlkRequestTest, AsManyRangesAsOffered) {
  const std::vector<BlkRange> many(BlkDevice::kMaxRangeSegments, BlkRange{8, 8, 0});
  EXPECT_EQ(driver->ranges(kBlkDiscard, many).status, kOk);
  EXPECT_EQ(disk->discards, BlkDevice::kMaxRangeSegments);
  EXPECT_EQ(driver->ranges(kBlkDiscard, {{0, 0, 0}}).status, kOk) << "an empty range is no harm";
}

// What was checked is what is used, whatever the guest does to it meanwhile (V-8).

void wait_for(std::atomic<unsigned>& value, unsigned wanted) {
  for (unsigned n = value; n != wanted; n = value) value.wait(n);
}

TEST_F(BlkRequestTest, AHeaderIsReadOnce) {
  driver->write(0, pattern(512, 1));
  AsyncEvent event;
  disk->held = &event;
  const std::uint64_t header = driver->put_header(kBlkIn, 0);
  const std::uint64_t in = guest->allocate(513);
  driver->ring().add({{header, 16, false}, {in, 513, true}});
  driver->publish();
  wait_for(disk->waiting, 1);
  std::memset(guest->at(header), 0xff, 16);
  event.set();
  EXPECT_EQ(driver->wait().length, 513u);
  EXPECT_EQ(guest->at(in)[512], std::byte{kOk});
  EXPECT_EQ(std::memcmp(guest->at(in), pattern(512, 1).data(), 512), 0);
}

TEST_F(BlkRequestTest, SegmentsAreReadOnce) {
  AsyncEvent event;
  disk->held = &event;
  const std::uint64_t header = driver->put_header(kBlkWriteZeroes, 0);
  const std::uint64_t data = guest->allocate(32);
  store_le(guest->at(data), std::uint64_t{0});
  store_le(guest->at(data) + 8, std::uint64_t{8});
  store_le(guest->at(data) + 16, std::uint64_t{8});
  store_le(guest->at(data) + 24, std::uint64_t{8});
  const std::uint64_t status = guest->allocate(1);
  driver->ring().add({{header, 16, false}, {data, 32, false}, {status, 1, true}});
  driver->publish();
  wait_for(disk->waiting, 1);
  std::memset(guest->at(data), 0xff, 32);
  event.set();
  driver->wait();
  EXPECT_EQ(*guest->at(status), std::byte{kOk});
  EXPECT_EQ(disk->zeroes, 2u);
}

// Get-id -----------------------------------------------------------------------------------------

struct SerialTest : BlkFixture {
  SerialTest() : BlkFixture({.serial = "disk-0001"}) {}
};

TEST_F(SerialTest, IsPaddedWithZeroes) {
  bring_up();
  const auto reply = driver->call(kBlkGetId, 0, {}, 20);
  EXPECT_EQ(reply.status, kOk);
  EXPECT_EQ(reply.written, 21u);
  EXPECT_STREQ(static_cast<const char*>(static_cast<const void*>(reply.data.data())), "disk-0001");
  EXPECT_EQ(reply.data[19], std::byte{0});
  EXPECT_EQ(driver->call(kBlkGetId, 0, {}, 4).data[3], std::byte{'k'});
  EXPECT_EQ(driver->call(kBlkGetId, 0, {}, 40).written, 20u) << "the rest was not written";
  EXPECT_EQ(driver->call(kBlkGetId, 0, {}, 0).status, kIoError);
}

struct LongSerialTest : BlkFixture {
  LongSerialTest() : BlkFixture({.serial = "0123456789abcdefghijklmnop"}) {}
};

TEST_F(LongSerialTest, IsCutAtTwentyBytes) {
  bring_up();
  EXPECT_EQ(driver->call(kBlkGetId, 0, {}, 20).data[19], std::byte{'j'});
}

// Read-only --------------------------------------------------------------------------------------

struct ReadOnlyTest : BlkFixture {
  ReadOnlyTest() : BlkFixture({.read_only = true}) {}
};

TEST_F(ReadOnlyTest, RefusesWritesWhateverTheDriverAcknowledged) {
  // The driver does not acknowledge RO (bit 5).
  ASSERT_TRUE(driver->bring_up(kFeatureVersion1, 64));
  EXPECT_EQ(driver->write(0, pattern(512, 1)).status, kIoError);
  EXPECT_EQ(driver->ranges(kBlkDiscard, {{0, 8, 0}}).status, kIoError);
  EXPECT_EQ(driver->ranges(kBlkWriteZeroes, {{0, 8, 0}}).status, kIoError);
  EXPECT_EQ(driver->read(0, 512).status, kOk);
  EXPECT_EQ(driver->flush().status, kOk);
  EXPECT_EQ(disk->writes + disk->durable_writes + disk->discards + disk->zeroes, 0u);
}

struct NoDiscardTest : BlkFixture {
  NoDiscardTest() : BlkFixture({.discard = false}) {}
};

TEST_F(NoDiscardTest, WhatIsNotOfferedIsUnsupported) {
  bring_up();
  EXPECT_EQ(driver->ranges(kBlkDiscard, {{0, 8, 0}}).status, kUnsupported);
  EXPECT_EQ(driver->ranges(kBlkWriteZeroes, {{0, 8, kBlkRangeUnmap}}).status, kOk);
  EXPECT_EQ(disk->unmaps, 0u);
}

// The parts of a request, without a device -------------------------------------------------------

TEST(SplitRequest, PartsAreFoundByBytes) {
  std::array<std::byte, 64> memory{};
  store_le<std::uint32_t>(&memory[0], kBlkOut);
  store_le<std::uint64_t>(&memory[8], 0x123456789a);
  Chain chain;
  ASSERT_TRUE(chain.add(std::span(memory).first(20), false));
  ASSERT_TRUE(chain.add(std::span(memory).subspan(40, 5), true));
  const BlkParts parts = split_request(chain);
  ASSERT_TRUE(parts.header);
  EXPECT_EQ(parts.header->type, kBlkOut);
  EXPECT_EQ(parts.header->sector, 0x123456789au);
  EXPECT_EQ(parts.out.contiguous().data(), &memory[16]);
  EXPECT_EQ(parts.out.size(), 4u);
  EXPECT_EQ(parts.in.size(), 4u);
  EXPECT_EQ(parts.status, &memory[44]);
}

TEST(SplitRequest, NothingAtAll) {
  const BlkParts parts = split_request(Chain{});
  EXPECT_FALSE(parts.header);
  EXPECT_TRUE(parts.out.empty());
  EXPECT_TRUE(parts.in.empty());
  EXPECT_EQ(parts.status, nullptr);
}

}  // namespace
}  // namespace platter::virtio
