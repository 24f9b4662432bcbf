"""All contests one after the other, the limits of the device, and a picture of the tables.

    python -m benchmarks [--cores 0,1] [--peers PYTHON] [--rounds N] [--only vae iwae] [--out FOLDER]

FOLDER gets DEVICE.json, which `python -m benchmarks.runner compare` takes, DEVICE-limits.json and DEVICE.png; a table
that is there already is replaced by its next reading. PYTHON belongs to an environment with
benchmarks/requirements.txt. Leave the machine alone meanwhile: about half an hour on two cores with all peers.
"""

import argparse
import re
import subprocess
import sys
from pathlib import Path

from benchmarks import picture, runner
from experiments.sweep_processes import cores as own_cores

WORKLOADS = {  # steps of a turn on an accelerator, where a turn is over too soon otherwise
    "vae": ["--steps", "4680"],
    "iwae": ["--steps", "2000"],
    "vq_vae": ["--steps", "500"],
    "beta_vae": ["--steps", "500"],
    "top_down": ["--steps", "500"],
    "quantizer": ["--calls", "500"],
}
BASELINES = Path(__file__).parent / "baselines"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cores", help="for example 0,1; default: all")
    parser.add_argument("--peers", help="the Python with benchmarks/requirements.txt installed")
    parser.add_argument("--rounds", default="5")
    parser.add_argument("--only", nargs="+", choices=WORKLOADS, default=list(WORKLOADS), metavar="WORKLOAD")
    parser.add_argument("--out", type=Path, default=BASELINES, metavar="FOLDER")
    args = parser.parse_args()

    kind = subprocess.run(  # in a process that ends, so that it holds no memory of the device
        [sys.executable, "-c", "import jax; print(jax.devices()[0].device_kind)"],
        **{"check": True, "capture_output": True, "text": True},
    ).stdout.strip()
    on_cpu = kind == "cpu"
    cores = ["--cores", args.cores] if args.cores else []
    count = len(args.cores.split(",") if args.cores else own_cores())
    device = f"{runner.processor()} {count} cores" if on_cpu else kind
    out = args.out / re.sub(r"\W+", "-", device).strip("-").lower()
    tables, limits = out.with_suffix(".json"), out.with_name(f"{out.name}-limits.json")
    args.out.mkdir(parents=True, exist_ok=True)
    options = [*cores, "--rounds", args.rounds, "--out", str(tables)]
    options += ["--peers", args.peers] if args.peers else []
    failed = []
    for workload in args.only:
        command = [sys.executable, "-m", f"benchmarks.{workload}", *options]
        if subprocess.run(command + ([] if on_cpu else WORKLOADS[workload])).returncode:
            failed.append(workload)
    measure = [sys.executable, "-m", "benchmarks.limits", *cores, "--tables", str(tables), "--json", str(limits)]
    subprocess.run(measure, check=True)
    runner.console.print(f"{tables}\n{limits}\n{picture.draw(tables, limits)}")
    if failed:
        sys.exit(f"failed, see above: {', '.join(failed)}")


if __name__ == "__main__":
    main()
