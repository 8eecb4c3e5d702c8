"""Works of a programmer: unpack and compile a project; git status.

The project is made here, the same each time, so that nothing has to be fetched: C files that include some of
as many headers, and a Makefile that knows what depends on what.
"""

from __future__ import annotations

import io
import os
import subprocess
import tarfile
from pathlib import Path
from typing import Final

from scripts.benchmark.figures import Value, duration
from scripts.benchmark.ground import Ground, NotMeasured, Work

HEADERS_OF_EACH: Final = 8
FUNCTIONS_OF_EACH: Final = 20
JOBS: Final = 2

GIT_FILES: Final = 20
"""Files in the repository for each source of the project."""


def _project(sources: int) -> dict[str, str]:
    """The project's files by name."""
    files = {}
    for number in range(sources):
        functions = [f"f{number}_{i}" for i in range(FUNCTIONS_OF_EACH)]
        files[f"include/m{number}.h"] = "#pragma once\n" + "".join(f"int {f}(int);\n" for f in functions)
        used = sorted({(number * 7 + i * i) % sources for i in range(HEADERS_OF_EACH)} | {number})
        calls = " + ".join(f"f{other}_0(x - 1)" for other in used)
        body = "".join(f'#include "m{other}.h"\n' for other in used)
        body += f"int f{number}_0(int x) {{ return x < 1 ? {number} : {calls}; }}\n"
        for i, function in enumerate(functions[1:]):
            body += f"int {function}(int x) {{ return x * {i} + {number}; }}\n"
        files[f"src/m{number}.c"] = body
    files["src/main.c"] = '#include "m0.h"\nint main(void) { return f0_0(2) == 0; }\n'
    objects = " ".join(f"src/m{number}.o" for number in range(sources)) + " src/main.o"
    files["Makefile"] = (
        f"CFLAGS = -O1 -Iinclude -MMD\nprogram: {objects}\n\t$(CC) -o $@ {objects}\n-include src/*.d\n"
    )
    return files


def _archive(path: Path, files: dict[str, str]) -> Path:
    if not path.exists():
        with tarfile.open(path, "w:gz") as archive:
            for name, text in files.items():
                member = tarfile.TarInfo(f"project/{name}")
                member.size = len(text.encode())
                member.mtime = 1_700_000_000
                archive.addfile(member, io.BytesIO(text.encode()))
    return path


def build(ground: Ground) -> tuple[Value, ...]:
    """Unpack and compile, through the client that writes."""
    archive = _archive(ground.scratch / "project.tar.gz", _project(ground.sizes.sources))
    ground.timed(ground.writer, "rm", "-rf", "project")
    unpacked, unpacking = ground.timed(ground.writer, "tar", "xzf", archive)
    made, making = ground.timed(ground.writer / "project", "make", "-s", f"-j{JOBS}")
    ground.timed(ground.writer / "project", "./program", "run")
    return (Value(unpacked + made, (unpacking + making).each(1)),)


_GIT: Final = ("git", "-c", "safe.directory=*", "-c", "core.checkStat=minimal", "-c", "core.trustctime=false")
"""The options are for sshfs, which knows neither inode numbers nor ctime."""


def _repository(ground: Ground) -> Path:
    """An archive of a repository with everything committed, made outside of every system."""
    archive = ground.scratch / "repository.tar"
    if archive.exists():
        return archive
    files = ground.sizes.sources * GIT_FILES
    tree = ground.scratch / "repository"
    for number in range(files):
        path = tree / f"d{number // 50}" / f"f{number}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"file {number}\n" * (number % 40 + 1))
        os.utime(path, (1_700_000_000, 1_700_000_000))
    identity = ("-c", "user.name=bench", "-c", "user.email=bench@localhost")
    for words in (["init", "-q"], ["add", "."], [*identity, "commit", "-qm", "all"], ["repack", "-adq"]):
        git = [*_GIT, *words] if words[0] != "-c" else [*_GIT[:1], *words]
        subprocess.run(git, cwd=tree, check=True, stdout=subprocess.DEVNULL)
    subprocess.run(["tar", "cf", archive, "-C", ground.scratch, "repository"], check=True)
    return archive


def git_status(ground: Ground) -> tuple[Value, ...]:
    """By a client that did not unpack the repository; then once more."""
    archive = _repository(ground)

    def unpack(path: Path) -> None:
        ground.timed(ground.writer, "tar", "xf", archive)
        ground.timed(path, *_GIT, "status", "--short")  # the index learns the files' times

    name = ground.made_once("repository", unpack)
    with ground.fresh() as client:
        status = (*_GIT, "--no-optional-locks", "status", "--short")
        if found := ground.system.run(*status, cwd=ground.writer / name).output:
            raise NotMeasured(f"git finds changes: {found.splitlines()[0]}")
        ran = [ground.timed(client / name, *status) for _ in range(2)]
        return tuple(Value(seconds * 1e3, cost.each(1)) for seconds, cost in ran)


PROJECT_WORKS: Final = (
    Work("build", (duration("build", "unpack and compile a C project", "s"),), build),
    Work(
        "git-status",
        (
            duration("git-status-cold", "git status, cold", "ms"),
            duration("git-status-warm", "git status, warm", "ms"),
        ),
        git_status,
    ),
)
