"""The questions of quick_start_multi_model.py. Every question shows its default; an answer that fits nothing is asked for again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from finetune.config_manager import ConfigManager
from finetune.engine.errors import InputError
from finetune.jobs_session import Wish


def wish_by_questions(wish: Wish, manager: ConfigManager) -> Wish:
    """What is asked for, after a few questions; those that flags have answered are not asked. Raises InputError where input ends."""
    names = manager.names()
    if not wish.models and len(names) > 1:
        print(f"\nmodels in {manager.folder}")
        for number, name in enumerate(names, start=1):
            print(f"  {number}  {_described(manager, name)}")
        wish = replace(wish, models=tuple(_chosen(names)))
    if wish.stage == "all":
        wish = replace(wish, stage=_one_of("stage", ["all", "tokenizer", "predictor"], "all"))
    several = len(wish.models or names) > 1
    if several:
        wish = replace(wish, mode=_one_of("mode", ["parallel", "sequential"], wish.mode))
    if not wish.resume:
        wish = replace(wish, resume=confirmed("keep what is done already, and go on from checkpoints"))
    return wish


def confirmed(what: str) -> bool:
    """Whether the answer is yes, which it is by default."""
    return _one_of(f"{what}?", ["yes", "no"], "yes") == "yes"


def _described(manager: ConfigManager, name: str) -> str:
    try:
        info = manager.load_config(name).get_model_info()
    except InputError as error:
        return f"{name}: does not load ({str(error).splitlines()[0]})"
    return f"{name}: {info['period']} bars, {info['lookback']} -> {info['horizon']}; {info['description']}".rstrip("; ")


def _chosen(names: Sequence[str]) -> list[str]:
    while True:
        answer = _asked("which? numbers or names, by spaces [all]").replace(",", " ").split()
        if not answer or answer == ["all"]:
            return list(names)
        found = [names[int(one) - 1] if one.isdecimal() and 1 <= int(one) <= len(names) else one for one in answer]
        unknown = [one for one in found if one not in names]
        if not unknown:
            return list(dict.fromkeys(found))
        print(f"there is no {', '.join(unknown)}")


def _one_of(what: str, choices: Sequence[str], default: str) -> str:
    while True:
        answer = _asked(f"{what} {' or '.join(choices)} [{default}]").lower() or default
        fitting = [choice for choice in choices if choice.startswith(answer)]
        if len(fitting) == 1:
            return fitting[0]
        print(f"please answer {' or '.join(choices)}")


def _asked(question: str) -> str:
    try:
        return input(f"{question}: ").strip()
    except EOFError:
        raise InputError("the input ended before all was asked; use flags and --yes in scripts") from None
