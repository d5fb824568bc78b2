/*
 * A library to preload: every fsync and fdatasync of the process waits for
 * DELAY_NS nanoseconds before it is done, as on a slower disk. The wait is a
 * sleep, so that it takes nothing of the processor.
 *
 * What is called by another way than through these two functions, for example
 * sync_file_range or a file opened with O_SYNC, waits for nothing more. Postfix
 * calls fsync.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#ifndef DELAY_NS
#error "say how long: -DDELAY_NS=5000000"
#endif

static void delay(void)
{
	struct timespec left = {DELAY_NS / 1000000000, DELAY_NS % 1000000000};

	while (clock_nanosleep(CLOCK_MONOTONIC, 0, &left, &left) == EINTR)
		;
}

int fsync(int fd)
{
	delay();
	return syscall(SYS_fsync, fd);
}

int fdatasync(int fd)
{
	delay();
	return syscall(SYS_fdatasync, fd);
}
