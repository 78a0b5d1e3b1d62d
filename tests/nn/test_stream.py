"""Blocks that come one at a time: the same numbers, each block once, one compilation."""

import functools
import threading

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_models import CONFIGS, LLAMA, SWITCHES, alternating, decoder, ids, varied

from jax_massact.errors import WeightsError
from jax_massact.measure.loss import losses_of
from jax_massact.nn import stream as streaming
from jax_massact.nn.edits import Edits
from jax_massact.nn.pieces import losses_in_pieces
from jax_massact.nn.rounding import INTEGER, Rounding, levels_of
from jax_massact.nn.stream import BlockSource, Stream, run, stream
from jax_massact.nn.transformer import Transformer, parameters


class Kept(BlockSource):
    """The blocks of a model in memory, one at a time; `log` says what happened when."""

    def __init__(self, model: Transformer):
        self.model, self.config, self.log = model, model.config, []

    def front(self):
        return self.model

    back = front

    def read(self, layer):
        self.log.append(f"read {layer}")
        every = parameters(self.model).items()
        return {name: x[layer] for name, x in every if name.startswith("blocks.")}

    def unpack(self, arrays):
        return arrays

    def block_bytes(self, layer):
        return 10

    def column(self, name, layer, dim):
        raise AssertionError("no test needs it")


def tap(acts):
    return acts.resid_post, acts.mlp_hidden.sum(-1)


def both(config, batch=2, length=9, **changes):
    """Logits and taps, in memory and streamed."""
    model, tokens = decoder(config), ids(config, batch, length)
    whole = jax.jit(lambda m, t, c: m(t, tap=tap, **c))(model, tokens, changes)
    return whole, stream(Kept(model), tokens, tap=tap, **changes)


def close(a, b):
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_allclose(x, y, rtol=0, atol=1e-5 * np.abs(x).max())


@pytest.mark.parametrize("config", [
    CONFIGS["gpt2"], SWITCHES["gemma"], SWITCHES["gpt_oss"],
    varied(LLAMA, variant="sink", bias_position=None),
    alternating(varied(LLAMA, depth=5), {"window": 3}),
], ids=["gpt2", "gemma", "gpt_oss", "sink", "alternating"])
def test_logits_and_taps_are_those_of_the_model_in_memory(config):
    whole, streamed = both(config)
    assert streamed[1][0].shape == whole[1][0].shape  # layers, sequences, tokens with the sink
    close(whole, streamed)


def test_edits_and_rounding_act_in_their_blocks():
    L, S = LLAMA.depth, 9
    edits = Edits.set_to([1, 2], np.arange(S) == 3, [4, 5], [30.0, -20.0])
    plain, _ = both(LLAMA)
    whole, streamed = both(LLAMA, edits=edits)
    close(whole, streamed)
    assert np.abs(whole[0] - plain[0]).max() > 0.1
    at = ("mlp_in", "resid_mid")
    rounding = Rounding(
        kind=jnp.full((L, 2), INTEGER), largest=jnp.full((L, 2), levels_of(4)),
        per_token=jnp.zeros((L, 2), bool), limit=jnp.zeros((L, 2)),
        kept=jnp.zeros((1, S), bool), sites=at,
    )
    whole, streamed = both(LLAMA, rounding=rounding)
    close(whole, streamed)
    assert np.abs(whole[0] - plain[0]).max() > 0.01
    with pytest.raises(ValueError, match="layer is 3; expected: 0 to 2"):
        stream(Kept(decoder(LLAMA)), ids(LLAMA, 2, S),
               edits=Edits.set_to(3, np.arange(S) == 3, 4, 1.0))


def test_a_model_in_memory_may_be_given_as_well():
    model, tokens = decoder(LLAMA), ids(LLAMA, 1, 5)
    np.testing.assert_array_equal(stream(model, tokens)[0], model(tokens)[0])


def test_all_sequences_pass_a_block_before_the_next_and_one_is_read_ahead(monkeypatch):
    source = Kept(decoder(varied(LLAMA, depth=4)))
    free = threading.Semaphore(0)
    read = source.read

    def slow(layer):
        # Block l + 1 is asked for before block l computes, and block l + 2 not before it is done.
        found = read(layer)
        free.release()
        return found

    monkeypatch.setattr(source, "read", slow)
    streams = [Stream(source, ids(LLAMA, 1, 5, seed)) for seed in (1, 2)]
    for name, one in zip("ab", streams, strict=True):
        def advance(layer, arrays, name=name, one=one, original=one.advance):
            if name == "a":
                assert free.acquire(timeout=10) and (layer == 3 or free.acquire(timeout=10))
                free.release()
            source.log.append(f"{name} {layer}")
            original(layer, arrays)

        monkeypatch.setattr(one, "advance", advance)
    said = []
    done = run(source, streams, report=said.append)
    assert source.log == [
        "read 0", "read 1", "a 0", "b 0", "read 2", "a 1", "b 1", "read 3", "a 2", "b 2", "a 3",
        "b 3",
    ]
    assert (done.blocks, done.depth, done.bytes, done.total) == (4, 4, 40, 40)
    assert [d.blocks for d in said] == [1, 2, 3, 4] and 0 <= done.waited <= done.seconds
    assert str(done._replace(blocks=1, bytes=13_500_000_000, total=54 * 10**9, seconds=20)) == (
        "block 1 of 4, 13.50 of 54.00 GB read, 60 s left"
    )


def test_equal_blocks_are_compiled_once():
    config = varied(LLAMA, depth=6)
    source, tokens = Kept(decoder(config)), ids(LLAMA, 1, 6)
    compiled = streaming._compiled()
    before = compiled._cache_size()
    for _ in range(2):
        source.residual(tokens, tap=tap)
    assert compiled._cache_size() == before + 1
    kinds = alternating(config, {"window": 3}, {"window": None})  # the third is the first again
    Kept(decoder(kinds)).residual(tokens, tap=tap)
    assert compiled._cache_size() == before + 3


def test_an_error_of_the_reader_arrives_and_no_thread_is_left():
    source = Kept(decoder(LLAMA))

    def fails(layer):
        if layer == 2:
            raise WeightsError("the disk is gone")
        return Kept(source.model).read(layer)

    source.read = fails
    with pytest.raises(WeightsError, match="the disk is gone"):
        source.residual(ids(LLAMA, 1, 5))

    def interrupted(done):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Kept(source.model).residual(ids(LLAMA, 1, 5), report=interrupted)
    assert not [t for t in threading.enumerate() if t.name.startswith("blocks")]


def test_losses_do_not_need_all_logits():
    config = varied(LLAMA, context_length=300, vocab_size=512)
    model, tokens = decoder(config), ids(config, 2, 300)
    x = jnp.asarray(np.random.default_rng(0).standard_normal((2, 300, 16)), "float32")
    found = losses_in_pieces(model, x, tokens)
    wanted = losses_of(model.logits(x), tokens)
    assert found.shape == (2, 299)
    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(losses_in_pieces(model, x[:, :2], tokens[:, :2]), wanted[:, :1],
                               rtol=1e-5)
    temporary = lambda f: f.lower(model, x, tokens).compile().memory_analysis().temp_size_in_bytes
    whole = jax.jit(lambda model, x, tokens: losses_of(model.logits(x), tokens))
    assert temporary(losses_in_pieces) < 0.6 * temporary(whole)


def test_the_stream_is_in_the_compute_dtype():
    model = decoder(LLAMA)
    half = functools.partial(jax.tree.map, lambda x: x.astype(jnp.bfloat16))
    config = varied(LLAMA, dtype="bfloat16")
    source = Kept(half(model))
    source.config = source.model.config = config
    x, taps = source.residual(ids(LLAMA, 1, 5), tap=tap)
    assert x.dtype == taps[0].dtype == jnp.bfloat16
