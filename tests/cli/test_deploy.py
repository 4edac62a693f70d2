"""What docs/deploy/ has for Kubernetes and Slurm, and the commands of docs/deploy.md."""

import copy
import os
import re
import runpy
import shlex
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from fcvit_mm.__main__ import find_tools
from fcvit_mm.utils.mim import MIM
from helpers import ROOT

DEPLOY = ROOT / "docs/deploy"
JOBS = {
    path.name: [*yaml.safe_load_all(path.read_text())] for path in sorted(DEPLOY.glob("*.yaml"))
}
SCRIPTS = sorted(DEPLOY.glob("*.sbatch"))
PAGE = (ROOT / "docs/deploy.md").read_text()
COMMANDS = [
    line
    for block in re.findall(r"^```bash\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)
    for line in block.splitlines()
]
# What sbatch's manual (https://slurm.schedmd.com/sbatch.html) has, by its long names.
SBATCH = set(
    """
account acctg-freq array batch bb bbf begin chdir cluster-constraint clusters comment constraint
container container-id contiguous core-spec cores-per-socket cpu-freq cpus-per-gpu cpus-per-task
deadline delay-boot dependency distribution error exclude exclusive export export-file extra
extra-node-info get-user-env gid gpu-bind gpu-freq gpus gpus-per-node gpus-per-socket gpus-per-task
gres gres-flags hint hold ignore-pbs input job-name kill-on-invalid-dep licenses mail-type mail-user
mcs-label mem mem-bind mem-per-cpu mem-per-gpu mincpus network nice no-kill no-requeue nodefile
nodelist nodes ntasks ntasks-per-core ntasks-per-gpu ntasks-per-node ntasks-per-socket
oom-kill-step open-mode output overcommit oversubscribe parsable partition prefer priority profile
propagate qos quiet reboot requeue reservation resv-ports segment signal sockets-per-node
spread-job stepmgr switches test-only thread-spec threads-per-core time time-min tmp tres-bind
tres-per-task uid use-min-nodes verbose wait wait-all-nodes wckey wrap
""".split()  # noqa: SIM905
)
VALUES = {
    "open-mode": r"append|truncate",
    "requeue": "",
    "signal": r"([RB]+:)?(\d+|[A-Z]+[12]?)(@\d+)?",
    "time": r"\d+(:\d\d){0,2}|\d+-\d+(:\d\d){0,2}",
    **dict.fromkeys(("cpus-per-task", "gpus-per-node", "nodes", "ntasks-per-node"), r"[1-9]\d*"),
    **dict.fromkeys(("job-name", "output"), r"[\w%.-]+"),
}


def options_of(script: str) -> dict[str, str]:
    """The options that sbatch reads in a script, up to the first command."""
    options = {}
    for line in script.splitlines():
        if line and not line.startswith("#"):
            break
        if line.startswith("#SBATCH "):
            name, _, value = line.removeprefix("#SBATCH --").partition("=")
            options[name] = value
    return options


def check_sbatch(script: str) -> None:
    for name, value in options_of(script).items():
        assert name in SBATCH, name
        assert re.fullmatch(VALUES[name], value), (name, value)


def parsed(words: Sequence[str], folder: Path) -> Any:
    """What a tool makes of its arguments, in a folder with the work directories that they name."""
    name, *arguments = words
    if name == "dist_train":
        config, gpus, *rest = arguments
        assert int(gpus) > 1
        name, arguments = "train", [config, *rest]
    for work_dir in (folder / word for word in arguments if word.startswith("work_dirs/")):
        work_dir.mkdir(parents=True)
        for file in ("config.py", "epoch_12.pth"):
            (work_dir / file).touch()
    config = arguments[0] if arguments else ""
    if config.startswith("fcvit_mm::"):
        assert (MIM / "configs" / config.removeprefix("fcvit_mm::")).is_file()
    elif config.startswith("configs/"):
        assert (ROOT / config).is_file()
    return runpy.run_path(str(find_tools()[name]))["parse_args"](arguments)


# ----------------------------------------------------------------------------- Kubernetes


@pytest.mark.parametrize("name", JOBS)
def test_jobs_are_what_kubernetes_takes(name):
    version = kubernetes_validate.latest_version()
    for resource in JOBS[name]:
        kubernetes_validate.validate(resource, version, strict=True)
    misspelt = copy.deepcopy(JOBS[name][-1])
    misspelt["spec"]["backofLimit"] = misspelt["spec"].pop("backoffLimit")
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(misspelt, version, strict=True)


@pytest.mark.parametrize("name", JOBS)
def test_jobs_run_tools_and_go_on_after_a_kill(name, tmp_path, monkeypatch):
    """And what they name is there: containers, volumes, the user of the Dockerfile."""
    monkeypatch.chdir(tmp_path)
    spec = JOBS[name][-1]["spec"]
    pod = spec["template"]["spec"]
    (container,) = pod["containers"]
    args = parsed(container["args"], tmp_path)
    assert "train" not in name or args.resume == "auto"
    claims = {
        resource["metadata"]["name"]
        for resources in JOBS.values()
        for resource in resources
        if resource["kind"] == "PersistentVolumeClaim"
    }
    volumes = {volume["name"]: volume for volume in pod["volumes"]}
    assert {mount["name"] for mount in container["volumeMounts"]} == volumes.keys()
    assert volumes["workspace"]["persistentVolumeClaim"]["claimName"] in claims
    (failure,) = [rule for rule in spec["podFailurePolicy"]["rules"] if "onExitCodes" in rule]
    assert failure["onExitCodes"]["containerName"] == container["name"]
    # which Kubernetes demands of a podFailurePolicy
    assert pod["restartPolicy"] == "Never"
    user = pod["securityContext"]["runAsUser"]
    assert f"--uid {user} " in (ROOT / "Dockerfile").read_text()


def test_the_numbers_of_a_job_agree():
    """Processes and GPUs; pods and what each is told of their number; seconds to stop in."""
    train, infer = (JOBS[name][-1]["spec"] for name in ("train-job.yaml", "infer-job.yaml"))
    pod = train["template"]["spec"]
    (container,) = pod["containers"]
    assert int(container["args"][2]) == container["resources"]["limits"]["nvidia.com/gpu"]
    (seconds,) = [entry["value"] for entry in container["env"]]
    assert 30 < int(seconds) < pod["terminationGracePeriodSeconds"]
    environment = {
        entry["name"]: entry for entry in infer["template"]["spec"]["containers"][0]["env"]
    }
    assert int(environment["WORLD_SIZE"]["value"]) == infer["completions"] == infer["parallelism"]
    assert infer["completionMode"] == "Indexed"
    path = environment["RANK"]["valueFrom"]["fieldRef"]["fieldPath"]
    assert path == "metadata.annotations['batch.kubernetes.io/job-completion-index']"


# ---------------------------------------------------------------------------------- Slurm


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.name)
def test_scripts_are_what_bash_and_sbatch_take(script):
    text = script.read_text()
    check_sbatch(text)
    assert {"requeue", "signal", "time"} <= options_of(text).keys()
    shellcheck = Path(sys.executable).with_name("shellcheck")
    for command in (["bash", "-n"], [shellcheck]):
        result = subprocess.run([*command, script], capture_output=True, text=True)
        assert result.returncode == 0, result.stdout + result.stderr


@pytest.mark.parametrize(
    "line", ["--reqeue", "--signal=@TERM", "--time=1 day", "--open-mode=a", "--nodes=0"]
)
def test_the_check_of_options_finds_mistakes(line):
    with pytest.raises(AssertionError):
        check_sbatch(f"#!/bin/sh\n#SBATCH {line}\n")


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.name)
@pytest.mark.parametrize(("status", "requeued"), [(143, True), (0, False), (2, False)])
def test_scripts_queue_their_job_again_when_it_was_stopped(script, status, requeued, tmp_path):
    """With commands in place of Slurm's and ours; the task is the sixth of 32, the second of 4."""
    stubs = {
        "srun": 'shift\nSLURM_PROCID=5 SLURM_LOCALID=1 SLURM_NTASKS=32 "$@"\n',
        "scontrol": f'echo "$@" > {tmp_path}/requeued\n',
        "fcvit": f'echo "${{RANK-}} ${{LOCAL_RANK-}} ${{WORLD_SIZE-}}" "$@" > {tmp_path}/ran\n'
        f"exit {status}\n",
    }
    for name, text in stubs.items():
        (tmp_path / name).write_text(f"#!/usr/bin/env bash\n{text}")
        (tmp_path / name).chmod(0o755)
    environment = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}", "SLURM_JOB_ID": "17"}
    result = subprocess.run(["bash", script], env=environment, cwd=tmp_path)
    assert result.returncode == status
    assert (tmp_path / "requeued").exists() == requeued
    if requeued:
        assert (tmp_path / "requeued").read_text() == "requeue 17\n"
    rank, words = re.fullmatch(
        r"([\d ]* )((?:train|infer) .*)\n", (tmp_path / "ran").read_text()
    ).groups()
    if script.stem == "infer":
        assert rank == "5 1 32 "
        return
    words = shlex.split(words)
    assert parsed(words, tmp_path).launcher == "slurm" and parsed(words, tmp_path).resume


def test_the_script_that_predicts_runs_infer(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    command = re.search(r"fcvit (infer .*?)\|\|", (DEPLOY / "infer.sbatch").read_text(), re.DOTALL)
    args = parsed(shlex.split(command[1].replace("\\\n", "")), tmp_path)
    assert args.inputs == ["images"] and args.out == "found" and args.no_draw


# ------------------------------------------------------------------------------- the page


@pytest.mark.parametrize("command", [line for line in COMMANDS if line.startswith("docker run")])
def test_containers_run_tools(command, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = shlex.split(command)
    (image,) = [i for i, word in enumerate(words) if word.partition(":")[0] == "fcvit-mm"]
    parsed(words[image + 1 :], tmp_path)


@pytest.mark.parametrize("command", [c for c in COMMANDS if re.match("kubectl|sbatch", c)])
def test_files_that_commands_name_are_there(command):
    assert (ROOT / command.split()[-1]).is_file()


def test_every_file_is_in_the_page():
    assert all(f"](deploy/{path.name})" in PAGE for path in DEPLOY.iterdir())
