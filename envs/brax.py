"""Adapter to the bodies of brax on MJX, MuJoCo's physics in JAX; both are imported only when asked for."""

import contextlib
import difflib
import io
import warnings
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.custom_batching import custom_vmap

from envs.base import Array, Env, Original, World

BODIES = (
    "ant",
    "halfcheetah",
    "hopper",
    "humanoid",
    "humanoidstandup",
    "inverted_double_pendulum",
    "inverted_pendulum",
    "pusher",
    "reacher",
    "walker2d",
)
HORIZON = 1000  # steps, brax's default length of an episode
MOST_REWARDS = 64  # of consecutive steps, at once: each takes up to 20 kB


class BraxState(NamedTuple):
    """A body between two steps: what its future and its reward depend on, and nothing else of brax's state.

    The solver starts from the last step's accelerations. MuJoCo's frames lag one substep behind the coordinates, and
    forward rewards are differences of frames: neither can be computed from the coordinates alone.

    Attributes:
        coordinates: [Q] generalised positions (m, rad, unit quaternions).
        velocities: [V] their rates (m/s, rad/s).
        accelerations: [V] the solver's last ones (m/s², rad/s²).
        positions: [L, 3] of the links' frames (m).
        rotations: [L, 4] of the links' frames, unit quaternions.
        obs: [D − 1] brax's observation.
        ended: [] bool, whether brax has ended the episode.
    """

    coordinates: Array
    velocities: Array
    accelerations: Array
    positions: Array
    rotations: Array
    obs: Array
    ended: Array


def brax_world(name: str) -> World:
    """A brax body on its MJX backend as a world without auto-reset and without time limit; deterministic but for ρ.

    The end of an episode is absorbing, pays 0, and is visible: the observation [D] is brax's own with the flag `ended`
    appended. Actions are clipped to [−1, 1], where brax itself would go beyond the motors' range. The reward of (s, a)
    is brax's for the step that a takes from s, so that asking for it costs one more step of physics. Models see the
    observation as sign(x) log(1 + |x|), since its coordinates differ by orders of magnitude, and the clipped action.

    Args:
        name: one of `BODIES`.

    Raises:
        ImportError: if brax or MJX is not installed.
        ValueError: on an unknown name.
    """
    body = make_body(name)
    fresh = jax.eval_shape(body.reset, jax.random.key(0))

    def restore(state):
        # Built anew at each call: brax writes into the dicts of the state that it is given.
        blank = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), fresh)
        pipeline = blank.pipeline_state.replace(
            qpos=state.coordinates,
            qvel=state.velocities,
            qacc_warmstart=state.accelerations,
            q=state.coordinates,
            qd=state.velocities,
            x=blank.pipeline_state.x.replace(pos=state.positions, rot=state.rotations),
        )
        return blank.replace(pipeline_state=pipeline, obs=state.obs)

    def settle(after):
        pipeline = after.pipeline_state
        frames = pipeline.x.pos, pipeline.x.rot
        state = BraxState(pipeline.qpos, pipeline.qvel, pipeline.qacc_warmstart, *frames, after.obs, after.done)
        return jax.tree.map(
            jnp.asarray, state, dtypes
        )  # with strong types: the first state's differ from a later one's

    dtype = fresh.obs.dtype
    dtypes = BraxState(*(dtype,) * 6, jnp.dtype(bool))

    def move(state, action):
        moved = settle(body.step(restore(state), clip(action)))
        return jax.tree.map(lambda old, new: jnp.where(state.ended, old, new), state, moved)

    def pay(state, action):
        paid = body.step(restore(state), clip(action)).reward
        return jnp.where(state.ended, 0, jnp.asarray(paid, dtype))

    move = jax.jit(on_one_axis(move))  # jit: traced once, although a program has several rollouts
    init = jax.jit(on_one_axis(lambda key: settle(body.reset(key))))
    reward = jax.jit(on_one_axis(pay, most=MOST_REWARDS))
    env = Env(init, lambda key, *inputs: move(*inputs), observe, action_size=body.action_size, horizon=HORIZON)
    original = Original(fresh.obs.shape, lambda obs: jnp.append(obs, 0), clip)
    return World(env, reward, features=squash, action_features=pair_features, original=original)


def observe(state: BraxState) -> Array:
    """brax's observation with the flag `ended` appended ([D])."""
    return jnp.append(state.obs, state.ended.astype(state.obs.dtype))


def clip(action: Array) -> Array:
    """The nearest action in [−1, 1]."""
    return jnp.clip(action, -1, 1)


def squash(obs: Array) -> Array:
    """sign(x) log(1 + |x|), elementwise: about x near 0, a few units at most anywhere."""
    return jnp.sign(obs) * jnp.log1p(jnp.abs(obs))


def pair_features(obs: Array, action: Array) -> Array:
    """What rewards and critics see: the squashed observation beside the clipped action."""
    return jnp.concatenate([squash(obs), clip(action)])


def on_one_axis(function, most: int | None = None):
    """The same function, of which any nest of vmaps is one vmap over one axis.

    XLA's kernels for CPUs crash on arrays of more than eight axes, of which MJX itself takes up to five; and programs
    with few axes compile faster.

    Args:
        function: arrays of one example -> arrays.
        most: of the innermost vmap at most so many are taken at once, to save memory; None: all.
    """
    single, batch = custom_vmap(function), custom_vmap(jax.vmap(function))

    @single.def_vmap
    def first(size, batched, *inputs):
        inputs = spread(size, batched, inputs)
        if most is None or size <= most:
            return all_batched(batch(*inputs))
        count = -(-size // most)
        spare = -size % count  # so that all parts are equal
        parts = jax.tree.map(lambda x: jnp.concatenate([x, x[:spare]]).reshape(count, -1, *x.shape[1:]), inputs)
        outputs = jax.lax.map(lambda x: batch(*x), parts)
        return all_batched(jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:])[:size], outputs))

    @batch.def_vmap
    def more(size, batched, *inputs):
        inputs = spread(size, batched, inputs)
        outputs = batch(*jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), inputs))
        return all_batched(jax.tree.map(lambda x: x.reshape(size, -1, *x.shape[1:]), outputs))

    return single


def spread(size: int, batched, inputs):
    """The inputs, each with a leading axis of that size."""
    return jax.tree.map(lambda x, has: x if has else jnp.broadcast_to(x, (size, *x.shape)), inputs, tuple(batched))


def all_batched(outputs):
    """What `custom_vmap` wants to know: the outputs, and that each has a leading axis."""
    return outputs, jax.tree.map(lambda x: True, outputs)


def make_body(name: str):
    """The brax environment on MJX, or one clear line on what is missing or misspelt."""
    if name not in BODIES:
        close = difflib.get_close_matches(name, BODIES, n=1, cutoff=0)[0]
        raise ValueError(f"brax has no body {name!r} on MJX; required: one of {', '.join(BODIES)}; nearest: {close!r}")
    try:
        with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # MJX prints which optional packages it lacks, brax that it is at rest
            import mujoco
            from brax import envs
            from mujoco import mjx  # noqa: F401
    except ImportError as error:
        lacking = (error.name or "brax").split(".")[0]
        raise ImportError(f"{lacking} is not installed; install it with: pip install -e '.[control]'") from error
    heard = mujoco.get_mju_user_warning()
    mujoco.set_mju_user_warning(lambda message: None)  # else a deprecated word in a model's file leaves a log file
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return envs.get_environment(name, backend="mjx")
    finally:
        mujoco.set_mju_user_warning(heard)
