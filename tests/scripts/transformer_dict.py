"""A pre-LN causal transformer written by hand; takes keyword inputs, returns a dict. Task: copy a sequence."""
import argparse
import math

import torch
import torch.nn as nn
import torch.nn.functional as F


class CausalSelfAttention(nn.Module):
    def __init__(self, dim, heads):
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x):
        B, T, C = x.shape
        q, k, v = self.qkv(x).split(C, dim=2)
        q, k, v = (t.view(B, T, self.heads, C // self.heads).transpose(1, 2) for t in (q, k, v))
        att = (q @ k.transpose(-2, -1)) / math.sqrt(k.size(-1))
        mask = torch.ones(T, T, dtype=torch.bool).tril()
        att = att.masked_fill(~mask, float("-inf")).softmax(-1)
        return self.proj((att @ v).transpose(1, 2).reshape(B, T, C))


class Block(nn.Module):
    def __init__(self, dim, heads):
        super().__init__()
        self.ln_1 = nn.LayerNorm(dim)
        self.attn = CausalSelfAttention(dim, heads)
        self.ln_2 = nn.LayerNorm(dim)
        self.mlp = nn.ModuleDict(dict(up=nn.Linear(dim, 4 * dim), down=nn.Linear(4 * dim, dim)))

    def forward(self, hidden_states):
        hidden_states = hidden_states + self.attn(self.ln_1(hidden_states))
        return hidden_states + self.mlp.down(F.gelu(self.mlp.up(self.ln_2(hidden_states))))


class Model(nn.Module):
    def __init__(self, vocab, dim=48, heads=4, layers=3, max_len=24):
        super().__init__()
        self.wte = nn.Embedding(vocab, dim)
        self.wpe = nn.Embedding(max_len, dim)
        self.blocks = nn.ModuleList(Block(dim, heads) for _ in range(layers))
        self.ln_f = nn.LayerNorm(dim)
        self.lm_head = nn.Linear(dim, vocab, bias=False)
        self.apply(self._init)

    def _init(self, m):
        if isinstance(m, (nn.Linear, nn.Embedding)):
            nn.init.normal_(m.weight, std=0.08)
            if getattr(m, "bias", None) is not None:
                nn.init.zeros_(m.bias)

    def forward(self, *, input_ids, labels=None):
        pos = torch.arange(input_ids.shape[1])
        h = self.wte(input_ids) + self.wpe(pos)
        for block in self.blocks:
            h = block(h)
        logits = self.lm_head(self.ln_f(h))
        out = {"logits": logits}
        if labels is not None:
            out["loss"] = F.cross_entropy(logits[:, :-1].reshape(-1, logits.size(-1)), labels[:, 1:].reshape(-1),
                                          ignore_index=-100)
        return out


def get_batch(n, vocab, half):
    first = torch.randint(vocab, (n, half))
    ids = torch.cat([first, first], 1)
    labels = ids.clone()
    labels[:, :half] = -100
    return {"input_ids": ids, "labels": labels}


def main(args):
    torch.manual_seed(args.seed)
    model = Model(args.vocab)
    optimizer = torch.optim.AdamW(model.parameters(), lr=args.lr, weight_decay=0.01, betas=(0.9, 0.98))
    for step in range(args.steps):
        outputs = model(**get_batch(32, args.vocab, 8))
        outputs["loss"].backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if step % 40 == 0:
            print({"step": step, "loss": round(outputs["loss"].item(), 4)})
    print("final loss " + outputs["loss"].item().hex())


if __name__ == "__main__":
    p = argparse.ArgumentParser()
    p.add_argument("--steps", type=int, default=160)
    p.add_argument("--lr", type=float, default=2e-3)
    p.add_argument("--vocab", type=int, default=12)
    p.add_argument("--seed", type=int, default=1337)
    main(p.parse_args())
