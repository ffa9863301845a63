"""The last line of a script where a promise is broken: what a pass does beside its numbers."""

from __future__ import annotations

from parity.scripting.passes import Passes
from parity.scripting.refusing import unshown


class Promises(Passes):
    """The line that shows a broken promise."""

    def _promise(self, name: str, words: str) -> str:
        """The line that shows a promise broken. Raises UsageError where none would."""
        cause = self.finding.cause.name if self.finding.cause else ""
        if name == "backward":  # where mine's own code raises, the script ends before this line
            own = "y" if self.torch_mine else "dx"
            each = f"{own} if isinstance({own}, (tuple, list)) else [{own}]"
            what = "(type(d).__name__, np.shape(d))"
            return f"print('backward returned', [{what} for d in ({each})])"
        if self.torch_mine or self.several:
            raise unshown(name, "one line does not tell of it for layers of this kind")
        if name == "dtype":
            return f"print({words!r}, np.asarray(y).dtype, 'for', x0.dtype)"
        if name == "aliasing" and cause == "view_of_input":
            return "print('the output shares the input\\'s memory:', np.shares_memory(y, x0))"
        if name == "untouched":
            pairs = ", ".join(f"(x{i}, t{i}.detach().numpy())" for i in range(len(self.pair.specs)))
            pairs += ", (g, h)" if self.backward else ""
            off = f"max(np.abs(a - b).max() for a, b in [{pairs}])"
            return f"print('inputs or upstream gradient changed by', {off})"
        again = not self.functions and not self.nested and self.style != "with forward"
        if name == "repeat" and again and "forward" in self._named_in_message():
            off = f"max(np.abs(np.asarray({self.forward}) - first).max() for _ in range(4))"
            return f"first = np.array(y); print('another forward is off by', {off})"
        if name == "accumulate" and again and self.backward:
            return (
                "once = {k: np.array(v) for k, v in mine.grads.items()}; "
                f"{self.forward}; {self.backward}; print('twice the gradients is off by', "
                "max(np.abs(mine.grads[k] - 2 * once[k]).max() for k in once))"
            )
        if name == "aliasing" and again:
            return (
                f"first = np.array(y); x0 += 1; {self.forward}; "
                "print('the output handed out is overwritten by', np.abs(y - first).max())"
            )
        raise unshown(name, str(self.finding.evidence.get("message", "one pass does not")))

    def _named_in_message(self) -> list[str]:
        """The quantities that a message ends with, after its colon."""
        return str(self.finding.evidence.get("message", "")).rpartition(": ")[2].split(", ")
