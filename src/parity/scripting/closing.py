"""The last line of a script: how far a quantity of mine is off."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Mapping
from typing import Any

from parity.adapters.slots import GRAD_STORES, LISTS, VALUES, grad_names, hint_of, is_numbers
from parity.findings import UsageError
from parity.scripting.promises import Promises
from parity.scripting.refusing import unshown
from parity.wording import quantity_text

ORDINARY = ("forward", "grad_", "buffer_")  # what one pass of both sides shows
GETTERS = ("get_grads", "get_gradients", "get_grad_params", "gradients")


class Closing(Promises):
    """The line that shows the difference."""

    def _closing(self) -> str:
        name = self.finding.quantity
        words = quantity_text(name)
        if not name.startswith(ORDINARY):
            return self._promise(name, words)
        two = self._both(name)
        if two is None:
            raise unshown(name, "what mine has for it cannot be reached by a line")
        mine, theirs = two
        if self.finding.cause is not None and self.finding.cause.name == "wrong_shape":
            return f"print({words + ' has shape'!r}, np.shape({mine}), 'torch', {theirs}.shape)"
        return f"print({words + ' is off by'!r}, np.abs(np.asarray({mine}) - {theirs}).max())"

    def _both(self, name: str) -> tuple[str, str] | None:
        if name.startswith("forward"):
            place = f"[{name.removeprefix('forward')}]" if name != "forward" else ""
            own = f"y{place}.detach()" if self.torch_mine else f"y{place}"
            return own, f"z{place}.detach().numpy()"
        if name.startswith("grad_input"):
            i = int(name.removeprefix("grad_input"))
            own = f"s{i}.grad" if self.torch_mine else "dx"
            if self.functions and getattr(self.runner, "result", None) is not None:
                grads = list(self.runner._grads.values())
                others = [t for t, a in self._returned() if all(a is not g for g in grads)]
                if i >= len(others):
                    return None
                own = others[i]
            elif not self.torch_mine and (len(self.floating) > 1 or self.functions):
                own = f"(dx if isinstance(dx, (tuple, list)) else (dx,))[{i}]"
            return own, f"t{i}.grad.numpy()"
        for prefix, store, get in (
            ("grad_", "grads", "theirs.get_parameter({!r}).grad.numpy()"),
            ("buffer_", "buffers", "theirs.get_buffer({!r}).numpy()"),
        ):
            if name.startswith(prefix):
                theirs = name.removeprefix(prefix)
                text = self._own_array(theirs, store, get)
                return None if text is None else (text, get.format(theirs))
        return None

    def _own_array(self, theirs: str, store: str, get: str) -> str | None:
        """The expression of a hand-written gradient or buffer, turned as torch's."""
        own = self.pair.names.mine(theirs)
        if self.torch_mine:
            return get.format(own).replace("theirs.", "mine.")
        if theirs not in self.partners:
            if store == "buffers" and theirs in self.pair.unheld:
                kind = type(self.runner.layer).__name__
                raise UsageError(
                    f"{kind} keeps no buffer {own!r}, so there is nothing for a script to show; "
                    f"keep it in {kind}.buffers, or save a bundle instead"
                )
            if store == "buffers":
                return self._unturned(f"{self._buffers()}[{own!r}]", theirs)
            if not hasattr(self.runner.layer, store):
                kind = type(self.runner.layer).__name__
                raise UsageError(f"{kind} keeps no {store} for a script; save a bundle instead")
            return self._unturned(f"mine.{store}[{own!r}]", theirs)
        own, layout = self.partners[theirs]
        if self.functions:
            grad = self.runner._grads.get(str(self.runner._names.get(own)))
            text = next((t for t, a in self._returned() if a is grad), "")
        else:
            text = self._held(own, store)
        if not text or layout is None:
            return self._unturned(text, theirs) if text else None
        inner = layout.folded or layout.theirs
        axes = layout.axes or tuple(range(len(inner)))
        turned = tuple(inner[axis] for axis in axes)
        text = f"{text}.reshape({turned}).transpose({_back(axes)}).reshape({layout.theirs})"
        return text + self._unblocked(theirs)

    def _returned(self) -> list[tuple[str, Any]]:
        """(expression, value) of what a backward function returned, None left out."""
        result = self.runner.result
        if isinstance(result, Mapping):
            pairs = [(f"dx[{key!r}]", item) for key, item in result.items()]
        elif isinstance(result, (tuple, list)):
            pairs = [(f"dx[{place}]", item) for place, item in enumerate(result)]
        else:
            pairs = [("dx", result)]
        return [(text, item) for text, item in pairs if item is not None]

    def _held(self, own: str, store: str) -> str:
        """The expression of a buffer, or of the gradient of what is kept as ``own``."""
        if "set_params" in self._line(own):
            place = f"mine.get_params()[{own!r}]"
        else:
            place = self._place(own)
        if store == "buffers":
            return f"np.asarray({place})"
        stem, _, leaf = place.removesuffix("[...]").rpartition(".")
        listed = re.fullmatch(r"mine\.(\w+)(\(\))?\[(\d+)\]", place.removesuffix("[...]"))
        found = [f"{stem}.{name}" for name in grad_names(leaf)]
        if self.grad_paths.get(own):
            found = [self._path(self.grad_paths[own])]
        elif leaf in VALUES:
            found = [f"{stem}.grad"]
        elif listed:
            getters = [name for head, names in LISTS if head == listed[1] for name in names]
            found = [f"mine.{n}()[{listed[3]}]" for n in getters]
            found += [f"mine.{n}[{listed[3]}]" for n in GRAD_STORES]
        keys = (own, *grad_names(own), hint_of(own)[0])
        found += [f"mine.{n}()[{key!r}]" for n in GETTERS for key in keys]
        found += [f"mine.{name}" for name in grad_names(own)]
        found += [f"mine.{n}[{key!r}]" for n in GRAD_STORES for key in keys]
        for text in found:
            with contextlib.suppress(Exception):
                if is_numbers(eval(text, {"mine": self.runner.layer})):
                    return f"np.asarray({text})"
        return ""

    def _unturned(self, text: str, theirs: str) -> str:
        axes = self.pair.names.axes.get(theirs)
        own, turned = self.pair.names.shapes.get(theirs, (None, None))
        text += "" if own is None else f".reshape({turned})"
        return (
            text + ("" if axes is None else f".transpose({_back(axes)})") + self._unblocked(theirs)
        )

    def _unblocked(self, theirs: str) -> str:
        """The index that puts the blocks of the layer's array in torch's order again."""
        order = self.pair.names.blocks.get(theirs)
        if order is None:
            return ""
        length = len(self.pair.reference.params[theirs])
        back = list(_back(order))
        return f"[np.arange({length}).reshape({len(back)}, -1)[{back}].ravel()]"


def _back(axes: Any) -> tuple[int, ...]:
    return tuple(sorted(range(len(axes)), key=lambda place: axes[place]))
