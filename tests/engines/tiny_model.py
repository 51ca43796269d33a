"""Writes a tiny Llama model for engines that read Hugging Face's format. Runs in the environment of the engine.

python tiny_model.py DIRECTORY

It is not trained. Its weights are chosen, so that tests know what it generates: each token has one successor. An answer
to a chat has the words WORDS and ends. If the text ends with another token, that token is repeated without an end.
"""

import itertools
import sys
from pathlib import Path

WORDS = "It is twelve o'clock in Oslo."
CONTEXT = 16_384  # tokens
_WORDS = ["It", " is", " twelve", " o'clock", " in", " Oslo", "."]
_ANSWER, _END, _UNKNOWN = "<|answer|>", "<|end|>", "<|unknown|>"
_HEADS, _HEAD_SIZE = 5, 64  # a size of heads that vLLM supports on CPUs
_WIDTH = _HEADS * _HEAD_SIZE  # at least one dimension for each token
_CERTAIN = 4.0  # the logit of the successor is 4 * sqrt(320) = 72 above the others, so sampling changes nothing
# Tools and their calls are written into the prompt, so its length shows what the engine has read. The message "forever"
# asks for an answer without an end.
_TEMPLATE = """\
{% if tools %}{% for tool in tools %}{{ tool | tojson }}
{% endfor %}{% endif %}\
{% for message in messages %}{{ message.role }}: {{ message.content or '' }}
{% for call in message.tool_calls or [] %}{{ call.function.name }} {{ call.function.arguments | tojson }}
{% endfor %}{% endfor %}\
{% if add_generation_prompt and messages[-1].content != 'forever' %}<|answer|>{% endif %}"""


def write_model(directory: Path) -> None:
    """Write the configuration, the weights and the tokenizer. They have 3.6 MB."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())  # one for each byte
    tokenizer = Tokenizer(models.BPE({letter: number for number, letter in enumerate(letters)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=_END,
        unk_token=_UNKNOWN,
        model_max_length=CONTEXT,
        clean_up_tokenization_spaces=False,
        chat_template=_TEMPLATE,
    )
    fast.add_special_tokens({"additional_special_tokens": [_ANSWER]})
    fast.add_tokens([word for word in _WORDS if len(word) > 1])

    config = LlamaConfig(
        vocab_size=len(fast),
        hidden_size=_WIDTH,
        intermediate_size=_WIDTH,
        num_hidden_layers=1,
        num_attention_heads=_HEADS,
        num_key_value_heads=_HEADS,
        max_position_embeddings=CONTEXT,
        bos_token_id=None,
        eos_token_id=fast.eos_token_id,
        tie_word_embeddings=False,
    )
    model = LlamaForCausalLM(config)
    successors = list(range(len(fast)))
    said = [fast.convert_tokens_to_ids(token) for token in (_ANSWER, *_WORDS, _END)]
    for token, successor in itertools.pairwise(said):
        successors[token] = successor
    with torch.no_grad():
        for weights in model.parameters():
            weights.zero_()  # attention and the other layers add nothing to the embedding of the last token
        for name, weights in model.named_parameters():
            if "norm" in name:
                weights.fill_(1.0)
        for token, successor in enumerate(successors):
            model.model.embed_tokens.weight[token, token] = 1.0
            model.lm_head.weight[successor, token] = _CERTAIN
    model.generation_config.eos_token_id = fast.eos_token_id
    model.save_pretrained(directory)
    fast.save_pretrained(directory)


if __name__ == "__main__":
    write_model(Path(sys.argv[1]))
