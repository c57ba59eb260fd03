"""Log-likelihoods against a plain PyTorch computation, one text at a time."""

import pytest
import torch
import transformers

import jaxllm
from jaxllm.errors import InputError

SIZES = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 16,
    "bos_token_id": 0,
    "eos_token_id": 0,
    "initializer_range": 0.4,
}
CONFIGS = {
    "gpt2": lambda size: transformers.GPT2Config(**SIZES, vocab_size=size),
    "llama": lambda size: transformers.LlamaConfig(
        **SIZES, vocab_size=size, intermediate_size=48, num_key_value_heads=2
    ),
}
TEXT = "we had a good time and the story was fine so they loved it"


@pytest.fixture(scope="module", params=CONFIGS)
def both(request, tmp_path_factory):
    from jaxllm.data.tokenizer import load_tokenizer
    from jaxllm.data.train_tokenizer import train_tokenizer

    directory = tmp_path_factory.mktemp(request.param)
    (directory / "text.txt").write_text(TEXT)
    files = [str(directory / "text.txt")]
    train_tokenizer(files, str(directory / "tokenizer"), kind="character", vocab_size=64)
    tokenizer = load_tokenizer(str(directory / "tokenizer"))
    torch.manual_seed(0)
    theirs = transformers.AutoModelForCausalLM.from_config(
        CONFIGS[request.param](len(tokenizer))
    ).eval()
    theirs.save_pretrained(directory / "model")
    ours = jaxllm.AutoModelForCausalLM.from_pretrained(directory / "model")
    return ours, theirs, tokenizer


def judged(theirs, tokens, count):
    """(log-probability of the last `count` tokens, whether greedy), as PyTorch computes it."""
    with torch.no_grad():
        logits = theirs(torch.tensor([tokens[:-1]])).logits[0].double()
    log_p = torch.log_softmax(logits, -1)[-count:]
    labels = torch.tensor(tokens[-count:])
    total = log_p.gather(1, labels[:, None]).sum().item()
    return total, bool((log_p.argmax(-1) == labels).all())


def test_continuations(both):
    ours, theirs, tokenizer = both
    begin = tokenizer.eos_token_id
    pairs = [("we had", " a"), ("", "we"), (TEXT, " had"), ("a", " good ti"), ("so ", "it")]
    letters = {i: letter for letter, i in tokenizer.get_vocab().items() if len(letter) == 1}
    for i, letter in letters.items():  # what greedy decoding writes behind a letter
        with torch.no_grad():
            best = int(theirs(torch.tensor([[i]])).logits[0, -1].argmax())
        pairs += [(letter, letters[best])] if best in letters else []
    found = ours.judge(tokenizer=tokenizer).loglikelihood(pairs)
    assert len({answer.is_greedy for answer in found}) == 2
    for (context, continuation), answer in zip(pairs, found, strict=True):
        n = len(tokenizer(context.rstrip(), add_special_tokens=False)["input_ids"])
        whole = tokenizer(context + continuation, add_special_tokens=False)["input_ids"]
        whole, count = (whole, len(whole) - n) if n else ([begin, *whole], len(whole))
        total, greedy = judged(theirs, whole[-17:], count)
        assert answer.log_probability == pytest.approx(total, abs=1e-4)
        assert answer.is_greedy == greedy


@pytest.mark.parametrize("stride", [16, 5])
def test_whole_texts(both, stride):
    ours, theirs, tokenizer = both
    ids = tokenizer(TEXT, add_special_tokens=False)["input_ids"]
    whole = [tokenizer.eos_token_id, *ids]
    total, done = 0.0, 0
    while done < len(ids):
        count = min(stride if done else 16, len(ids) - done)
        done += count
        total += judged(theirs, whole[max(0, done - 16) : done + 1], count)[0]
    [found] = ours.judge(tokenizer=tokenizer).loglikelihood_rolling([TEXT], stride)
    assert found.log_probability == pytest.approx(total, abs=3e-4)
    assert (found.tokens, found.bytes) == (len(ids), len(TEXT))


def test_arguments(both):
    ours, _, tokenizer = both
    with pytest.raises(InputError, match="max_length: found 17, expected 1 to the model's 16"):
        ours.judge(tokenizer=tokenizer, max_length=17)
    with pytest.raises(InputError, match="batch_size: found 0, expected at least 1"):
        ours.judge(tokenizer=tokenizer, batch_size=0)
    fresh = jaxllm.AutoModelForCausalLM.from_config(ours.config)
    with pytest.raises(InputError, match="tokenizer: found none"):
        fresh.judge()
