"""How many weights a step reads and multiplies by: what a model is beside its attention. No jax."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True, slots=True)
class Weights:
    """The parameters of a model's matrices, by when a step touches them.

    Norms, biases, convolutions and parts for images or sound are left out: less than 2 % of the
    models of `catalog.yaml` whose number of parameters is published.

    Attributes:
      embedding_params: Of tables of which a token reads one row.
      always_params: Of matrices that every token is multiplied by.
      head_params: Of the matrix that makes logits; only tokens that are sampled from use it.
      head_is_embedding: Whether that matrix is the table of embeddings.
      expert_params: Of one expert in every layer that has experts; 0 without.
      num_experts: Experts of such a layer.
      experts_per_token: How many of them a token goes to.
    """

    embedding_params: int
    always_params: int
    head_params: int
    head_is_embedding: bool
    expert_params: int = 0
    num_experts: int = 0
    experts_per_token: int = 0

    @property
    def total_params(self) -> int:
        """All of them: what HBM holds."""
        head = 0 if self.head_is_embedding else self.head_params
        experts = self.expert_params * self.num_experts
        return self.embedding_params + self.always_params + head + experts

    @property
    def active_params(self) -> int:
        """Those of matrices that a token which is sampled from is multiplied by."""
        return self.always_params + self.head_params + self.expert_params * self.experts_per_token

    def touched_params(self, num_tokens: int) -> float:
        """Those of matrices that a step of so many tokens reads.

        Every token chooses its experts independently, all alike: a trained router's choices are
        less even, so that fewer experts are read.
        """
        touched = float(self.always_params + self.head_params)
        if self.num_experts:
            missed = (1 - self.experts_per_token / self.num_experts) ** num_tokens
            touched += self.expert_params * self.num_experts * (1 - missed)
        return touched

    def flops(self, num_tokens: int, num_sampled: int) -> float:
        """Floating-point operations of a step's matrix products, attention's own apart.

        Args:
          num_tokens: New tokens of the step.
          num_sampled: Those whose logits are made: one of each sequence.
        """
        a_token = self.always_params + self.expert_params * self.experts_per_token
        return 2.0 * (a_token * num_tokens + self.head_params * num_sampled)
