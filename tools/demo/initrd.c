/* The /init of a tiny initrd for Debian's stock kernel, whose virtio drivers are modules: loads
 * /modules/NN-name.ko in order, waits for /dev/vda, mounts it and hands over to its /sbin/init. */
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/reboot.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

static void die(const char *what) {
  printf("initrd: %s: %s\n", what, strerror(errno));
  fflush(stdout);
  reboot(RB_AUTOBOOT);
  _exit(1);
}

static void load_modules(void) {
  struct dirent **names;
  int count = scandir("/modules", &names, NULL, alphasort);
  if (count < 0) die("/modules");
  for (int i = 0; i < count; i++) {
    if (names[i]->d_name[0] == '.') continue;
    char path[512];
    snprintf(path, sizeof path, "/modules/%s", names[i]->d_name);
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0 || (syscall(SYS_finit_module, fd, "", 0) != 0 && errno != EEXIST)) die(path);
    close(fd);
    free(names[i]);
  }
  free(names);
}

int main(void) {
  if (mount("dev", "/dev", "devtmpfs", 0, "") != 0 && errno != EBUSY) die("mount /dev");
  load_modules();
  const struct timespec tick = {.tv_nsec = 10 * 1000 * 1000};
  for (int i = 0; access("/dev/vda", F_OK) != 0; i++) {
    if (i == 1000) die("/dev/vda did not appear");
    nanosleep(&tick, NULL);
  }
  if (mount("/dev/vda", "/root", "ext4", 0, "") != 0) die("mount /dev/vda");
  if (chdir("/root") != 0 || mount(".", "/", NULL, MS_MOVE, NULL) != 0 || chroot(".") != 0) die("switch root");
  char *argv[] = {"/sbin/init", NULL};
  execv(argv[0], argv);
  die("/sbin/init");
}
