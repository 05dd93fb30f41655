// Errors: one line for all of it, and what it means as data.
#include "block/base/error.h"

#include <gtest/gtest.h>

namespace platter {
namespace {

TEST(ErrorData, ContextGoesInFrontOfTheReasonAndTheHintStaysBehindIt) {
  const Error error = Error(EAGAIN, "Failed to get lock")
                          .with_hint("Is another process\nusing the image.")
                          .in("could not open 'x'");
  EXPECT_EQ(error.message(),
            "could not open 'x': Failed to get lock: Is another process using the image");
  ASSERT_EQ(error.parts().size(), 1u);
  EXPECT_EQ(error.parts()[0].reason, "could not open 'x': Failed to get lock");
  EXPECT_EQ(error.parts()[0].hint, "Is another process\nusing the image.");
  EXPECT_EQ(error.code(), EAGAIN);
}

TEST(ErrorData, FurtherFailuresAreTold) {
  const Error error = Error(EIO, "tables").also(Error(ENOSPC, "counts")).in("close");
  EXPECT_EQ(error.message(), "close: tables; close: counts");
  ASSERT_EQ(error.parts().size(), 2u);
  EXPECT_EQ(error.parts()[1].reason, "close: counts");
  EXPECT_EQ(error.code(), EIO);
}

TEST(ErrorData, TheKindStays) {
  const Error error = Error(EACCES, "no").as(ErrorKind::kReadOnlyNode);
  EXPECT_EQ(error.in("x").with_hint("y").also(Error(EIO, "z")).kind(), ErrorKind::kReadOnlyNode);
  EXPECT_EQ(Error(EACCES, "no").kind(), ErrorKind::kOther);
}

TEST(ErrorData, TheFileThatTheTextNamesStays) {
  const Error error = Error(EIO, "Could not close 'a'").naming("a");
  EXPECT_EQ(Error(EIO, "Could not close 'a'").file(), "");
  EXPECT_EQ(error.file(), "a");
  EXPECT_EQ(error.message(), "Could not close 'a'");
  EXPECT_EQ(error.in("x").with_hint("y").as(ErrorKind::kGivenUp).also(Error(EIO, "z")).file(), "a");
  EXPECT_EQ(error.in("b").naming("b").file(), "b");
}

TEST(ErrorData, AFileMayBeCalledByAnotherName) {
  const Error error = Error(EIO, "'/tmp/a': no room beside '/tmp/a'")
                          .with_hint("Remove '/tmp/a'.")
                          .naming("/tmp/a")
                          .as(ErrorKind::kGivenUp)
                          .also(Error(EIO, "'/tmp/a' stays"))
                          .renamed("/tmp/a", "b");
  EXPECT_EQ(error.message(), "'b': no room beside 'b': Remove 'b'; 'b' stays");
  EXPECT_EQ(error.file(), "b");
  EXPECT_EQ(error.kind(), ErrorKind::kGivenUp);
  EXPECT_EQ(error.renamed("c", "d").file(), "b");
}

}  // namespace
}  // namespace platter
