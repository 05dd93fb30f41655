// The first and only process of the Linux guest: uses its root file system on the disk under test,
// says on the console how it went, and ends the machine: by switching off if the kernel can (it has
// ACPI), otherwise by a restart.
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/reboot.h>
#include <sys/stat.h>
#include <unistd.h>

enum { kFileSize = 1 << 20, kBlock = 64 * 1024 };
static unsigned char block[kBlock];

static void end(const char* what) {
  char line[200];
  int error = errno, acpi = access("/sys/firmware/acpi/tables/FACP", F_OK) == 0;
  int length = what == NULL ? snprintf(line, sizeof line, "LINUX PASS\n")
                            : snprintf(line, sizeof line, "LINUX FAIL: %s: %s\n", what, strerror(error));
  if (write(1, line, (size_t)length) < 0) {
  }
  length = snprintf(line, sizeof line, "processors: %ld, end: %s\n", sysconf(_SC_NPROCESSORS_ONLN),
                    acpi ? "power-off" : "restart, for want of ACPI");
  if (write(1, line, (size_t)length) < 0) {
  }
  sync();
  mount("/dev/vda", "/", NULL, MS_REMOUNT | MS_RDONLY, NULL);
  reboot(acpi ? RB_POWER_OFF : RB_AUTOBOOT);
  for (;;) pause();
}

static void fill(unsigned number) {
  for (unsigned i = 0; i < kBlock; ++i) block[i] = (unsigned char)(number * 31 + i * 7 + (i >> 8));
}

static void copy_file(const char* from, const char* to) {
  int in = open(from, O_RDONLY), out = open(to, O_WRONLY | O_CREAT | O_TRUNC, 0644);
  ssize_t count;
  if (in < 0 || out < 0) end("copy");
  while ((count = read(in, block, sizeof block)) > 0) {
    if (write(out, block, (size_t)count) != count) end("copy: write");
  }
  if (count < 0 || fsync(out) != 0) end("copy: end");
  close(in);
  close(out);
}

int main(void) {
  if (mount("proc", "/proc", "proc", 0, NULL) != 0) end("mount /proc");
  if (mount("sysfs", "/sys", "sysfs", 0, NULL) != 0) end("mount /sys");
  // What the host left, read and written back under another name.
  copy_file("/from-host", "/from-guest");
  // A file of our own, pushed out of the cache and compared with what it should be.
  if (mkdir("/work", 0755) != 0) end("mkdir");
  int file = open("/work/data", O_RDWR | O_CREAT | O_EXCL, 0644);
  if (file < 0) end("create");
  for (unsigned i = 0; i < kFileSize / kBlock; ++i) {
    fill(i);
    if (write(file, block, kBlock) != kBlock) end("write");
  }
  if (fsync(file) != 0) end("fsync");
  int caches = open("/proc/sys/vm/drop_caches", O_WRONLY);
  if (caches < 0 || write(caches, "3", 1) != 1) end("drop caches");
  static unsigned char expected[kBlock];
  for (unsigned i = 0; i < kFileSize / kBlock; ++i) {
    fill(i);
    memcpy(expected, block, kBlock);
    if (pread(file, block, kBlock, (off_t)i * kBlock) != kBlock) end("read");
    if (memcmp(block, expected, kBlock) != 0) {
      errno = EIO;
      end("compare");
    }
  }
  close(file);
  if (rename("/work/data", "/work/kept") != 0) end("rename");
  if (unlink("/to-delete") != 0) end("unlink");
  end(NULL);
}
