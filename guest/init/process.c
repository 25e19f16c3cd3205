// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
/* Processes: one that carries out the commands and can be killed, and one for a command that blocks. */
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "init.h"

static bool in_child;
/* The process of run_in_background(), or 0. */
static pid_t in_background;

/* Waits for the end of a process: its status as waitpid() gives it, or -1 and errno. */
static int status_of(pid_t process)
{
	int status;

	while (waitpid(process, &status, 0) < 0)
		if (errno != EINTR)
			return -1;
	return status;
}

/* From here on the child reads the commands. When it is gone, this process says so and reads on. */
static void child(struct words words)
{
	(void)words;
	if (in_child)
		return fail("this is a child");
	pid_t process = fork();
	if (process < 0)
		return fail_errno("fork");
	if (!process) {
		in_child = true;
		return ok("%s", "");
	}
	int status = status_of(process);
	if (status < 0)
		return fail_errno("waitpid");
	if (WIFSIGNALED(status))
		return ok("signal %d", WTERMSIG(status));
	fail("the child ended with status %d", WEXITSTATUS(status));
}

static void kill_child(struct words words)
{
	(void)words;
	if (!in_child)
		return fail("this is init");
	/* Its parent answers. */
	kill(getpid(), SIGKILL);
}

/* Runs a command in a process that has nothing open, so that it may wait for this one to close something. */
static void run_in_background(struct words words)
{
	if (in_background)
		return fail("one is running");
	pid_t process = fork();
	if (process < 0)
		return fail_errno("fork");
	if (!process) {
		drop_line();
		_exit(run_words(words) ? 0 : 1);
	}
	in_background = process;
	ok("%s", "");
}

static void wait_for_it(struct words words)
{
	(void)words;
	if (!in_background)
		return fail("none is running");
	int status = status_of(in_background);
	in_background = 0;
	if (status)
		return fail("status %#x", status);
	ok("%s", "");
}

/* No process but this one is there: each of the others has ended, and is forgotten with this. */
static void alone(struct words words)
{
	pid_t ended;

	(void)words;
	do
		ended = waitpid(-1, NULL, WNOHANG);
	while (ended > 0);
	if (!ended)
		return fail("another process is running");
	if (errno != ECHILD)
		return fail_errno("waitpid");
	ok("%s", "");
}

const struct command process_commands[] = {
	{ "child", 0, 0, child },
	{ "kill", 0, 0, kill_child },
	{ "background", 1, -1, run_in_background },
	{ "background-wait", 0, 0, wait_for_it },
	{ "alone", 0, 0, alone },
	{ NULL, 0, 0, NULL },
};
