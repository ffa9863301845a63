"""Optimizers: what a training step does to the parameters, given their gradients."""

import numpy as np

from impl.optimizer_base import Optimizer, option, parts


class SGD(Optimizer):
    """Stochastic gradient descent with momentum, as torch.optim.SGD.

    g ← grad + weight_decay·p;  b ← momentum·b + (1 - dampening)·g (b = g at first);
    p ← p - lr·b, or with nesterov p - lr·(g + momentum·b). maximize turns grad's sign first.
    State: momentum_buffer, where there is momentum. Raises ValueError for negative lr, momentum
    or weight_decay, and for nesterov without momentum or with dampening.
    """

    momentum = option("momentum")
    dampening = option("dampening")
    nesterov = option("nesterov")

    def __init__(
        self,
        model,
        lr=1e-3,
        momentum=0,
        dampening=0,
        weight_decay=0,
        nesterov=False,
        *,
        maximize=False,
        foreach=None,
        differentiable=False,
        fused=None,
    ):
        options = {
            "lr": lr,
            "momentum": momentum,
            "dampening": dampening,
            "weight_decay": weight_decay,
            "nesterov": nesterov,
            "maximize": maximize,
        }
        unsupported = {"foreach": foreach, "differentiable": differentiable, "fused": fused}
        super().__init__(model, options, unsupported)

    def _check_options(self):
        super()._check_options()
        self._check_not_negative("momentum")
        if self.nesterov and (self.momentum <= 0 or self.dampening != 0):
            raise ValueError(
                f"SGD got momentum={self.momentum!r}, dampening={self.dampening!r}: Nesterov "
                f"momentum requires a momentum and zero dampening"
            )

    # float() throughout: a Python number takes on the array's dtype, a 0-d array would widen it.

    def _update(self, param, grad, slots):
        if self.momentum == 0:
            lr = float(self.lr)
            for param_part, grad_part in parts(param, grad):
                param_part -= lr * self._decayed(param_part, grad_part)
            return
        first = "momentum_buffer" not in slots
        buffer = self._slot(slots, "momentum_buffer", param)
        for part in parts(param, grad, buffer):
            self._update_with_momentum(first, *part)

    def _update_with_momentum(self, first, param, grad, buffer):
        momentum, share = float(self.momentum), 1 - float(self.dampening)
        grad = self._decayed(param, grad)
        if first:  # undamped, as in torch
            buffer[...] = grad
        else:
            buffer *= momentum
            buffer += grad if share == 1 else share * grad
        param -= float(self.lr) * (grad + momentum * buffer if self.nesterov else buffer)


class Adam(Optimizer):
    """Adam, as torch.optim.Adam.

    m ← m + (1 - β1)·(g - m);  v ← β2·v + (1 - β2)·g²;
    p ← p - lr/(1 - β1^t)·m / (√v/√(1 - β2^t) + eps), at step t = 1, 2, …
    g is grad + weight_decay·p; with decoupled_weight_decay, p ← p·(1 - lr·weight_decay) comes
    first instead. amsgrad puts the largest v so far in v's place.
    State: step (a float32 array of shape ()), exp_avg m, exp_avg_sq v and max_exp_avg_sq. Raises
    ValueError for negative lr, eps or weight_decay and betas outside [0, 1).
    """

    betas = option("betas")
    eps = option("eps")
    amsgrad = option("amsgrad")
    decoupled_weight_decay = option("decoupled_weight_decay")

    def __init__(
        self,
        model,
        lr=1e-3,
        betas=(0.9, 0.999),
        eps=1e-8,
        weight_decay=0,
        amsgrad=False,
        *,
        maximize=False,
        foreach=None,
        capturable=False,
        differentiable=False,
        fused=None,
        decoupled_weight_decay=False,
    ):
        options = {
            "lr": lr,
            "betas": betas,
            "eps": eps,
            "weight_decay": weight_decay,
            "amsgrad": amsgrad,
            "maximize": maximize,
            "decoupled_weight_decay": decoupled_weight_decay,
        }
        unsupported = {
            "foreach": foreach,
            "capturable": capturable,
            "differentiable": differentiable,
            "fused": fused,
        }
        super().__init__(model, options, unsupported)

    def _check_options(self):
        super()._check_options()
        self._check_not_negative("eps")
        if np.shape(self.betas) != (2,) or not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError(
                f"{self._name} got betas={self.betas!r}; it must be two numbers in [0, 1)"
            )

    def _update(self, param, grad, slots):
        step = slots.setdefault("step", np.zeros((), np.float32))
        step += 1
        names = ["exp_avg", "exp_avg_sq"] + ["max_exp_avg_sq"] * bool(self.amsgrad)
        moments = [self._slot(slots, name, param) for name in names]
        for part in parts(param, grad, *moments):
            self._update_part(float(step), *part)

    def _update_part(self, time, param, grad, mean, square, largest=None):
        lr, beta1, beta2 = float(self.lr), float(self.betas[0]), float(self.betas[1])
        if self.decoupled_weight_decay:
            param *= 1 - lr * float(self.weight_decay)
        else:
            grad = self._decayed(param, grad)
        # Two workspaces serve every term; np.empty, since 0-d arithmetic would return scalars.
        work, ratio = np.empty(param.shape, param.dtype), np.empty(param.shape, param.dtype)

        _move_towards(mean, grad, 1 - beta1, work)
        np.multiply(grad, 1 - beta2, out=work)  # before the square, which may overflow
        work *= grad
        square *= beta2
        square += work
        if largest is not None:  # the maximum of what is not yet corrected for its bias
            square = np.maximum(largest, square, out=largest)

        np.sqrt(square, out=work)
        work /= (1 - beta2**time) ** 0.5
        work += float(self.eps)
        np.multiply(mean, lr / (1 - beta1**time), out=ratio)
        ratio /= work
        param -= ratio


class AdamW(Adam):
    """Adam with decoupled weight decay, as torch.optim.AdamW: see Adam."""

    def __init__(
        self,
        model,
        lr=1e-3,
        betas=(0.9, 0.999),
        eps=1e-8,
        weight_decay=1e-2,
        amsgrad=False,
        *,
        maximize=False,
        foreach=None,
        capturable=False,
        differentiable=False,
        fused=None,
    ):
        super().__init__(
            model,
            lr,
            betas,
            eps,
            weight_decay,
            amsgrad,
            maximize=maximize,
            foreach=foreach,
            capturable=capturable,
            differentiable=differentiable,
            fused=fused,
            decoupled_weight_decay=True,
        )


def _move_towards(mean, grad, share, work):
    """mean += share·(grad - mean), from the nearer end as torch.lerp does."""
    np.subtract(grad, mean, out=work)
    if share < 0.5:
        work *= share
        mean += work
    else:
        work *= 1 - share
        np.subtract(grad, work, out=mean)
