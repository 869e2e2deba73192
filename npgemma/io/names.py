"""The names of tensors.

Four spellings of the same names are about, depending on the release of transformers that wrote them; `plain_name` takes
them all to the shortest.
"""

import re

HEAD = "text.lm_head.weight"
NOT_USED = re.compile(r"vision\.head\..*|.*\.position_ids|.*\.rotary_emb\.inv_freq")


def plain_name(name: str) -> str:
    """A stored name without what differs between releases: 'vision.', 'text.' or 'multi_modal_projector.' and the tail.

    hub files           language_model.model.layers.0.…     vision_tower.vision_model.encoder.…
    in memory, 4.52     model.language_model.layers.0.…     model.vision_tower.vision_model.encoder.…
    in memory, 5.6      model.language_model.layers.0.…     model.vision_tower.encoder.…
    saved by 5.x        language_model.model.layers.0.…     vision_tower.encoder.…
    """
    name = name.removeprefix("model.")
    name = re.sub(r"^vision_tower\.(vision_model\.)?", "vision.", name)
    name = re.sub(r"^(language_model\.)?lm_head\.", "text.lm_head.", name)
    return re.sub(r"^language_model\.(model\.)?", "text.", name)
