"""What to change where memory or a GPU is lacking, in the numbers of the configuration at hand."""

from __future__ import annotations

from typing import Protocol


class Sizes(Protocol):
    """What is read of a loop's settings, or of a configuration's `training` section."""

    @property
    def batch_size(self) -> int: ...
    @property
    def accumulation_steps(self) -> int: ...
    @property
    def activation_checkpointing(self) -> bool: ...
    @property
    def amp(self) -> str: ...


def memory_advice(sizes: Sizes) -> str:
    """Ways to need less memory, joined by "; or "."""
    batch, steps = sizes.batch_size, sizes.accumulation_steps
    smaller = max(1, batch // 2)
    advice = [f"batch_size {smaller} with accumulation_steps {steps * batch // smaller} (same effective batch)"] if batch > 1 else []
    if not sizes.activation_checkpointing:
        advice.append("activation_checkpointing: true (about a third more time, much less memory)")
    if sizes.amp == "off":
        advice.append("amp: bf16")
    return "; or ".join(advice or ["a smaller model, or shorter windows (data.lookback_window)"])


def out_of_memory(sizes: Sizes, where: str) -> str:
    """The message of a run that `where` (a device, a machine) has no memory for."""
    return (
        f"{where} ran out of memory with batch_size {sizes.batch_size}, accumulation_steps {sizes.accumulation_steps}, "
        f"activation_checkpointing {str(sizes.activation_checkpointing).lower()}, amp {sizes.amp}. Try: {memory_advice(sizes)}"
    )


def cannot_compile(error: BaseException) -> str | None:
    """The message if `error` says that torch.compile lacks something of this machine; None if it says anything else."""
    inner = getattr(error, "inner_exception", error)
    if type(inner).__name__ not in ("InvalidCxxCompiler", "TritonMissing", "GPUTooOldForTriton"):
        return None
    said = str(inner).strip().partition("\n")[0].rstrip(".")
    return (
        f"training.compile: torch.compile cannot work on this machine ({said}); install what it misses (on a CPU a C++ compiler such as "
        "g++, on a GPU triton), or set training.compile: false"
    )


def without_gpu(sizes: Sizes, parameters: int) -> str:
    """What to expect, and to do, where a model of so many parameters is trained without a GPU."""
    return (
        f"no GPU is used: the predictor's {parameters / 1e6:.0f} million parameters at batch_size {sizes.batch_size} × accumulation_steps "
        f"{sizes.accumulation_steps} are slow on a CPU; shorten the work (training.n_train_iter, fewer epochs) or take a smaller model "
        "(model_paths.pretrained_predictor NeoQuasar/Kronos-mini with pretrained_tokenizer NeoQuasar/Kronos-Tokenizer-2k); if memory runs "
        f"short: {memory_advice(sizes)}"
    )
