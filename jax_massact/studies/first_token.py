"""The token that a study puts in front of every sequence."""

from jax_massact.data.tokenizer import Tokenizer
from jax_massact.errors import DataError


def find_first_token(tokenizer: Tokenizer, name: str) -> int:
    """The id that a setting `first_token` means.

    Raises:
      DataError: the tokenizer has no BOS token, or the text is not one token.
    """
    if name == "bos":
        if tokenizer.bos_id is None:
            raise DataError(
                f"{tokenizer.source}: its tokenizer has no BOS token; name the first token with "
                "first_token, by its id or text"
            )
        return tokenizer.bos_id
    if name.isdecimal():
        return int(name)
    ids = tokenizer.encode(name, bos=False)
    if len(ids) != 1:
        raise DataError(f"first_token {name!r} is {len(ids)} tokens; expected: a text that is one")
    return int(ids[0])
