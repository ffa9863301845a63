"""``parity doctor``: versions, BLAS, threads, precision switches, and what would distort."""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import platform
from typing import Any

SWITCHES = (
    "ATEN_CPU_CAPABILITY",
    "MKL_CBWR",
    "MKL_NUM_THREADS",
    "NVIDIA_TF32_OVERRIDE",
    "OMP_NUM_THREADS",
    "ONEDNN_DEFAULT_FPMATH_MODE",
    "ONEDNN_MAX_CPU_ISA",
    "OPENBLAS_NUM_THREADS",
    "CUBLAS_WORKSPACE_CONFIG",
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of ``parity doctor``."""
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(args: argparse.Namespace) -> int:
    """Print what a comparison here depends on; return 0, also where there are warnings."""
    facts = examine()
    if args.json:
        print(json.dumps(facts, ensure_ascii=False))
        return 0
    for section in ("versions", "machine", "torch", "environment"):
        print(f"{section}:")
        for name, value in facts[section].items():
            print(f"  {name:34} {value}")
    print("distortions:")
    for sentence in facts["distortions"] or ["none: comparisons here mean what they say"]:
        print(f"  {sentence}")
    return 0


def examine() -> dict[str, Any]:
    """Return versions, machine, torch's settings, environment and distortions as plain data."""
    from parity.environment import versions

    facts: dict[str, Any] = {
        "versions": versions(),
        "machine": _machine(),
        "torch": _torch(),
        "environment": {name: os.environ[name] for name in SWITCHES if name in os.environ},
    }
    facts["distortions"] = distortions(facts)
    return facts


def _machine() -> dict[str, Any]:
    import numpy as np

    return {
        "system": f"{platform.system()} {platform.machine()}",
        "cores": len(os.sched_getaffinity(0))
        if hasattr(os, "sched_getaffinity")
        else os.cpu_count(),
        "numpy BLAS": _numpy_blas(),
        "numpy subnormals": "kept" if np.float64(2.0**-1070) * np.float64(0.5) > 0 else "flushed",
    }


def _numpy_blas() -> str:
    import numpy as np

    try:
        config: Any = np.show_config(mode="dicts")
        blas = config["Build Dependencies"]["blas"]
        return f"{blas['name']} {blas['version']}"
    except (TypeError, KeyError):  # NumPy before 1.25 prints alone
        return "unknown"


def _torch() -> dict[str, Any]:
    import torch

    tiny = torch.tensor(2.0**-1070, dtype=torch.float64)
    flags = torch.__config__.show()
    return {
        "BLAS": "MKL" if torch.backends.mkl.is_available() else _built_with(flags),
        "oneDNN": torch.backends.mkldnn.is_available(),
        "CPU capability": _capability(torch),
        "threads": torch.get_num_threads(),
        "threads between operations": torch.get_num_interop_threads(),
        "default dtype": str(torch.get_default_dtype()).removeprefix("torch."),
        "float32 matmul precision": torch.get_float32_matmul_precision(),
        "deterministic algorithms": torch.are_deterministic_algorithms_enabled(),
        "subnormals": "kept" if float(tiny * 0.5) > 0 else "flushed",
        "gradients": torch.is_grad_enabled(),
        "bfloat16 tiles (AMX)": _has_amx(),
        "CUDA": torch.version.cuda if torch.cuda.is_available() else "none",
        "TF32 matmul": bool(torch.cuda.is_available() and torch.backends.cuda.matmul.allow_tf32),
    }


def _built_with(flags: str) -> str:
    for part in flags.replace("\n", ",").split(","):
        name, equals, value = part.strip().partition("=")
        if equals and name == "BLAS_INFO":
            return value
    return "unknown"


def _capability(torch: Any) -> str:
    with contextlib.suppress(AttributeError, RuntimeError):
        return str(torch.backends.cpu.get_cpu_capability())
    return "unknown"


def _has_amx() -> bool:
    with contextlib.suppress(OSError), open("/proc/cpuinfo", encoding="utf-8") as file:
        text = io.StringIO(file.read(1 << 16)).getvalue()
        return "amx_bf16" in text
    return False


def distortions(facts: dict[str, Any]) -> list[str]:
    """Return one sentence for everything that would make a comparison mean something else."""
    torch, machine, environment = facts["torch"], facts["machine"], facts["environment"]
    found = []
    if torch["float32 matmul precision"] != "highest":
        found.append(
            f"torch's float32 matmul precision is {torch['float32 matmul precision']!r}: float32 "
            "products may be off by 2e-3; torch.set_float32_matmul_precision('highest')"
        )
    mode = environment.get("ONEDNN_DEFAULT_FPMATH_MODE", "STRICT").upper()
    if mode not in ("STRICT", "0"):
        found.append(
            f"ONEDNN_DEFAULT_FPMATH_MODE={mode}: oneDNN computes float32 in lower precision; "
            "unset it"
        )
    if environment.get("NVIDIA_TF32_OVERRIDE") == "1" or torch["TF32 matmul"]:
        found.append(
            "TF32 is on: float32 products on the GPU keep 10 bits; "
            "torch.backends.cuda.matmul.allow_tf32 = False"
        )
    if torch["default dtype"] != "float32":
        found.append(
            f"torch's default dtype is {torch['default dtype']}: new modules are no longer "
            "float32; torch.set_default_dtype(torch.float32)"
        )
    flushed = [
        name
        for name, value in (
            ("torch", torch["subnormals"]),
            ("NumPy", machine["numpy subnormals"]),
        )
        if value == "flushed"
    ]
    if flushed:
        found.append(
            f"{' and '.join(flushed)} flush subnormal numbers to zero; torch.set_flush_denormal"
            "(False), or look for a library built with -ffast-math"
        )
    if not torch["gradients"]:
        found.append("gradients are off in torch: torch.set_grad_enabled(True)")
    if torch["threads"] > machine["cores"]:
        found.append(
            f"torch uses {torch['threads']} threads on {machine['cores']} cores: speed ratios mean "
            "nothing; OMP_NUM_THREADS"
        )
    if "ATEN_CPU_CAPABILITY" in environment or "MKL_CBWR" in environment:
        found.append(
            "ATEN_CPU_CAPABILITY or MKL_CBWR stands in for another processor: "
            "bits and speed are that one's, verdicts hold"
        )
    return found
