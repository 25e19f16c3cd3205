// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
/* Processes: one that carries out the commands and can be killed, copies of it, and one for a command that blocks. */
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include "init.h"

#define INIT 1
#define MOST_COPIES 4

/* Processes beside this one, each with a line of its own for commands. */
static struct copy {
	char name[32];
	pid_t process;
	FILE *line;
} copies[MOST_COPIES];
/* Of a process that is such a copy: where its commands come from. */
static int line_descriptor = -1;

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
	if (getpid() != INIT)
		return fail("this is a child");
	pid_t process = fork();
	if (process < 0)
		return fail_errno("fork");
	if (!process)
		return ok("%s", "");
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
	if (getpid() == INIT)
		return fail("this is init");
	/* Its parent answers. */
	kill(getpid(), SIGKILL);
}

static struct copy *find_copy(const char *name)
{
	for (int i = 0; i < MOST_COPIES; i++)
		if (!strcmp(copies[i].name, name))
			return &copies[i];
	fail("no process \"%s\"", name);
	return NULL;
}

static void forget_copy(struct copy *copy)
{
	if (copy->line)
		fclose(copy->line);
	*copy = (struct copy){ .line = NULL };
}

/* A copy of this process, which has what it has open, and waits for commands. */
static void make_copy(struct words words)
{
	struct copy *copy = find_copy("");
	int ends[2];

	if (!copy)
		return;
	if (socketpair(AF_UNIX, SOCK_STREAM, 0, ends))
		return fail_errno("socketpair");
	pid_t process = fork();
	if (!process) {
		close(ends[0]);
		for (int i = 0; i < MOST_COPIES; i++)
			forget_copy(&copies[i]);
		/* The other process answers. */
		line_descriptor = ends[1];
		return take_line(ends[1]);
	}
	close(ends[1]);
	FILE *line = process < 0 ? NULL : fdopen(ends[0], "r");
	if (!line) {
		close(ends[0]);
		return fail_errno("fork");
	}
	fcntl(ends[0], F_SETFD, FD_CLOEXEC);
	copy->process = process;
	copy->line = line;
	snprintf(copy->name, sizeof copy->name, "%s", words.word[0]);
	ok("%s", "");
}

/* A copy has ended. */
static void say_end(struct copy *copy)
{
	int status = status_of(copy->process);

	forget_copy(copy);
	if (status >= 0 && WIFSIGNALED(status))
		return ok("signal %d", WTERMSIG(status));
	fail("it ended with status %#x", status);
}

/* Has a copy carry out a command, and answers as it does. */
static void run_in_copy(struct words words)
{
	struct copy *copy = find_copy(words.word[0]);
	char *text = NULL;
	size_t size = 0;
	bool is_answered = false;

	if (!copy)
		return;
	dprintf(fileno(copy->line), "%s\n", join(words, 1));
	while (!is_answered && getline(&text, &size, copy->line) > 0) {
		text[strcspn(text, "\n")] = 0;
		is_answered = text[0] == '=';
		if (!strncmp(text, "| ", 2))
			data("%s", text + 2);
		else if (!strncmp(text, "= ok ", 5))
			ok("%s", text + 5);
		else if (!strncmp(text, "= error ", 8))
			fail("%s", text + 8);
	}
	free(text);
	if (!is_answered)
		say_end(copy);
}

/* This program once more, in this process: nothing is left but what is open. */
static void exec_again(struct words words)
{
	char line[16];

	(void)words;
	if (line_descriptor < 0)
		return fail("only in a process of \"fork\"");
	snprintf(line, sizeof line, "%d", line_descriptor);
	execl("/proc/self/exe", "init", line, NULL);
	fail_errno("exec");
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
	{ "fork", 1, 1, make_copy },
	{ "in", 2, -1, run_in_copy },
	{ "exec", 0, 0, exec_again },
	{ "background", 1, -1, run_in_background },
	{ "background-wait", 0, 0, wait_for_it },
	{ "alone", 0, 0, alone },
	{ NULL, 0, 0, NULL },
};
