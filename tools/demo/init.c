/* The /sbin/init of the demo's guest: shows that it reads and writes its root disk, and stops.
 *   /greeting   is read and printed
 *   /boots      gets one line more at each boot, is synced, and read back */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/reboot.h>
#include <sys/utsname.h>
#include <unistd.h>

static void stop(void) {
  fflush(stdout);
  sync();
  mount("", "/", NULL, MS_REMOUNT | MS_RDONLY, "");
  /* A kernel without ACPI knows of no power switch; a reset ends the machine as well. */
  mount("sysfs", "/sys", "sysfs", 0, "");
  int acpi = access("/sys/firmware/acpi/tables/FACP", F_OK) == 0;
  printf("guest: %s\n", acpi ? "switching off" : "restarting, which ends it (this kernel has no ACPI)");
  fflush(stdout);
  reboot(acpi ? RB_POWER_OFF : RB_AUTOBOOT);
  _exit(1);
}

static void die(const char *what) {
  printf("guest: %s: %s\n", what, strerror(errno));
  stop();
}

int main(void) {
  int console = open("/dev/console", O_RDWR);
  if (console >= 0)
    for (int fd = 0; fd < 3; fd++) dup2(console, fd);

  struct utsname name;
  uname(&name);
  printf("guest: Linux %s, root disk mounted\n", name.release);

  char line[128];
  FILE *greeting = fopen("/greeting", "r");
  if (!greeting || !fgets(line, sizeof line, greeting)) die("/greeting");
  printf("guest: read /greeting: %s", line);
  fclose(greeting);

  FILE *boots = fopen("/boots", "a+");
  if (!boots) die("/boots");
  int count = 1;
  while (fgets(line, sizeof line, boots)) count++;
  fprintf(boots, "boot %d\n", count);
  if (fflush(boots) != 0 || fsync(fileno(boots)) != 0) die("/boots");
  rewind(boots);
  printf("guest: wrote and synced /boots, which now reads:\n");
  while (fgets(line, sizeof line, boots)) printf("guest:   %s", line);
  fclose(boots);
  printf("guest: done\n");
  stop();
}
