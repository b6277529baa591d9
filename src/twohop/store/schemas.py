"""The columns of every table that passes between steps. Changing one re-runs what reads it."""

import polars as pl

Text, Flag, Count, Real = pl.String(), pl.Boolean(), pl.Int64(), pl.Float64()
Texts = pl.List(pl.String)

ENTITIES = {
    "entity_id": Text,  # e.g. "flags:FR"
    "name": Text,
    "aliases": Texts,
    "kind": Text,  # "country"
    "look_alikes": Texts,  # entity_ids whose picture is nearly identical (empty when the picture is unique)
    "evaluated": Flag,  # drawn into the study
}
FACTS = {
    "entity_id": Text,
    "relation": Text,
    "answer": Text,
    "answer_aliases": Texts,  # includes the answer
    "name_in_answer": Flag,  # the answer contains the entity's name (or the reverse): never asked
    "source": Text,
    "source_version": Text,
    "licence": Text,
    "url": Text,
}
PICTURE_SOURCES = {
    "picture_id": Text,  # e.g. "flags:FR/noto_original"
    "entity_id": Text,
    "art_source": Text,  # flag-icons, circle-flags, noto
    "style": Text,
    "licence": Text,
    "author": Text,
    "source_page": Text,
    "locator": Text,  # where the source finds it again
}
MANIFEST = {
    **PICTURE_SOURCES,
    "status": Text,  # "ok" or "failed"
    "reason": Text,  # "" when ok
    "file": Text,  # "<sha256>.png" inside pictures.zip
    "sha256": Text,
    "size_bytes": Count,
    "width": Count,
    "height": Count,
}
QUESTIONS = {
    "question_id": Text,  # "<entity_id>/<relation>"
    "entity_id": Text,
    "relation": Text,
    "name": Text,
    "before": Text,  # prompt = before + (name | picture) + after
    "after": Text,
    "answer": Text,
    "answer_aliases": Texts,
    "picture_id": Text,
    "split": Text,  # "dev" or "test", by entity
    "n_name_tokens": Count,  # in context, for this model's tokenizer
    "corrupted_id": Text,  # question_id of the twin: same relation, other answer, same n_name_tokens; null: none
    "clean_token": Count,  # token id of m's first term: the first answer token that differs; null when there is no twin
    "corrupted_token": Count,  # token id of m's second term
}
ANSWERS = {  # run_benchmark: one row per question and condition
    "question_id": Text,
    "entity_id": Text,
    "relation": Text,
    "condition": Text,  # "text", "image", "blank"
    "prompt": Text,
    "answer_text": Text,
    "correct": Flag,
    "matched_alias": Text,  # null when wrong
}
RECOGNITION = {  # run_benchmark: one row per picture and prompt
    "picture_id": Text,
    "entity_id": Text,
    "art_source": Text,
    "style": Text,
    "prompt_id": Count,
    "answer_text": Text,
    "correct": Flag,  # free naming, alias match
    "matched_alias": Text,
    "ranked_name": Text,  # the entity name with the largest log-probability among all names of the entity table
    "ranked_correct": Flag,
}
SCORES = {  # score_attribution: means over examples
    "run": Text,  # "text" or "image"
    "kind": Text,  # mlp_write, attn_write, resid_post
    "layer": Count,
    "group": Text,  # entity, entity_last, image, image_last, question, last
    "mean_abs": Real,
    "mean_signed": Real,
    "n_examples": Count,
}
VALIDATION = {
    "run": Text,
    "kind": Text,
    "layer": Count,
    "group": Text,
    "question_id": Text,
    "attributed": Real,
    "patched": Real,
}
SPANS = {  # score_attribution, image run: |score| of every position, for the heuristic receiving span
    "question_id": Text,
    "layer": Count,
    "position_scores": pl.List(
        pl.Float64
    ),  # mlp_write, image + question positions in prompt order, 0 = first image token
}
OUTCOMES = {  # patch_activations: one row per question and intervention
    "question_id": Text,
    "set": Text,  # "lost" (backbone right, VLM wrong, recognised) or "kept" (both right)
    "split": Text,
    "intervention": Text,  # heuristic, random, back_patch, wrong_entity, own_text, mean, zero, sweep, none
    "seed": Count,
    "layers": Count,  # donor layers 0..layers-1; for back_patch the earlier (receiving) layer
    "from_layer": Count,  # back_patch: the later layer; else null
    "span_start": Count,  # first receiving position relative to the first image token; null when none
    "span_length": Count,
    "answer_text": Text,
    "correct": Flag,
    "matched_alias": Text,
    "donor_entity_id": Text,
    "moved_to_donor": Flag,  # wrong_entity: the answer is the donor's fact; else null
}
CURVES = {  # train_probes
    "feature": Text,
    "layer": Count,  # 0 = embeddings (input of the first layer), l = resid_post of layer l-1
    "test_style": Text,
    "accuracy": Real,
    "low": Real,
    "high": Real,
    "shuffled_accuracy": Real,
    "selectivity": Real,  # accuracy - shuffled_accuracy
    "selectivity_low": Real,
    "selectivity_high": Real,
    "l2": Real,
    "n_train": Count,
    "n_test": Count,
}
PREDICTIONS = {  # train_probes: what every probe says of every test picture
    "feature": Text,
    "layer": Count,  # as in CURVES
    "test_style": Text,
    "entity_id": Text,  # what the picture shows
    "predicted": Text,  # entity_id
    "correct": Flag,
    "shuffled_correct": Flag,  # of the control
}
RECOVERED = {  # recover_recall
    "question_id": Text,
    "entity_id": Text,
    "relation": Text,
    "strategy": Text,  # direct, name_then_answer, two_turns, oracle_name
    "written_name": Text,  # what the model wrote (null for direct); the true name for oracle_name
    "name_correct": Flag,
    "answer_text": Text,
    "correct": Flag,
    "matched_alias": Text,
}
