"""Makes a llama model of two layers with random weights, for llama.cpp's server to serve in tests.

    python tests/data/make_gguf.py OUT.gguf

It speaks no language: each token is one character, the seed is fixed, and only printable characters are ever likely.
"""

import sys

import gguf
import numpy as np

WIDTH, HEADS, LAYERS, INNER, CONTEXT = 32, 2, 2, 64, 2048

# llama.cpp's only template that needs no special tokens in the vocabulary.
TEMPLATE = "{% for message in messages %}{{ message.role }}: {{ message.content }}\n{% endfor %}assistant:"


def vocabulary():
    """Unknown, begin, end, a token for each byte, and a token for each printable character."""
    kinds = gguf.TokenType
    words = [("<unk>", kinds.UNKNOWN), ("<s>", kinds.CONTROL), ("</s>", kinds.CONTROL)]
    words += [(f"<0x{byte:02X}>", kinds.BYTE) for byte in range(256)]
    words += [("\u2581" if char == " " else char, kinds.NORMAL) for char in map(chr, range(32, 127))]
    return words


def make(path):
    words = vocabulary()
    random = np.random.default_rng(20240229)

    def weights(*shape):
        return (random.standard_normal(shape) * 0.3).astype(np.float32)

    writer = gguf.GGUFWriter(path, "llama")
    writer.add_name("tiny")
    writer.add_context_length(CONTEXT)
    writer.add_embedding_length(WIDTH)
    writer.add_block_count(LAYERS)
    writer.add_feed_forward_length(INNER)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(HEADS)
    writer.add_rope_dimension_count(WIDTH // HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(len(words))
    writer.add_tokenizer_model("llama")
    writer.add_token_list([word for word, _ in words])
    writer.add_token_scores([float(-index) for index in range(len(words))])
    writer.add_token_types([int(kind) for _, kind in words])
    writer.add_unk_token_id(0)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_chat_template(TEMPLATE)

    # The first number of each embedding is large, and the output weighs it against every token that is not printable.
    embeddings, output = weights(len(words), WIDTH), weights(len(words), WIDTH)
    embeddings[:, 0] = 8.0
    output[: len(words) - 95, 0] = -20.0
    output[len(words) - 95 :, 0] = 0.0
    ones = np.ones(WIDTH, np.float32)
    writer.add_tensor("token_embd.weight", embeddings)
    writer.add_tensor("output.weight", output)
    writer.add_tensor("output_norm.weight", ones)
    for layer in range(LAYERS):
        block = f"blk.{layer}."
        writer.add_tensor(block + "attn_norm.weight", ones)
        writer.add_tensor(block + "ffn_norm.weight", ones)
        for name in ("attn_q", "attn_k", "attn_v", "attn_output"):
            writer.add_tensor(block + name + ".weight", weights(WIDTH, WIDTH))
        writer.add_tensor(block + "ffn_gate.weight", weights(INNER, WIDTH))
        writer.add_tensor(block + "ffn_up.weight", weights(INNER, WIDTH))
        writer.add_tensor(block + "ffn_down.weight", weights(WIDTH, INNER))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


if __name__ == "__main__":
    make(sys.argv[1])
