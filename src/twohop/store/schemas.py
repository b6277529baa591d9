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
    "popularity": Real,  # as the source measures it, e.g. sitelinks of Wikidata; null: not known
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
FUNNEL = {  # curate_entities: one row per filter, in the order in which entities pass them
    "filter": Text,
    "rows_in": Count,  # entities that reach it; those of the first row are all that the source has
    "dropped": Count,
    "rows_out": Count,  # rows_in - dropped; those of the last row are the evaluated ones
    "examples": Texts,  # ids of the first few that were dropped
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
    "kind": Text,  # mlp_write, attn_write, resid_post, head; with atp_star also query, key
    "layer": Count,
    "head": Count,  # of kinds head and query; for key the key-value head; null for the others
    "group": Text,  # entity, entity_last, image, image_last, question, last
    "mean_abs": Real,  # mean of |score|; with atp_star of GradDrop's magnitude
    "mean_signed": Real,
    "n_examples": Count,
}
QUESTION_SCORES = {  # score_attribution: what `mean_abs` is the mean of, for intervals over entities
    "run": Text,
    "question_id": Text,
    "entity_id": Text,
    "kind": Text,  # mlp_write, attn_write
    "group": Text,
    "scores": pl.List(pl.Float64),  # one per layer, the first layer first
}
VALIDATION = {
    "run": Text,
    "kind": Text,
    "layer": Count,
    "head": Count,
    "group": Text,
    "question_id": Text,
    "attributed": Real,  # signed estimate of `patched`
    "magnitude": Real,  # |attributed|; with atp_star GradDrop's mean of |score|
    "patched": Real,  # m(node truly patched) - m(clean)
}
SPANS = {  # score_attribution, image run: |score| of every position, for the heuristic receiving span
    "question_id": Text,
    "layer": Count,
    "position_scores": pl.List(
        pl.Float64
    ),  # mlp_write, image + question positions in prompt order, 0 = first image token
}
OUTCOMES = {  # patch_activations: one row per intervention, so per question and patched run
    "question_id": Text,
    "set": Text,  # "lost" (backbone right, VLM wrong, recognised) or "kept" (both right)
    "split": Text,
    "intervention": Text,  # heuristic, random, back_patch, wrong_entity, own_text, mean, zero, sweep, none
    "digest": Text,  # of `record`: names this intervention in logs and work files
    "record": Text,  # JSON of the whole `analysis.Intervention`: the run can be made again from it
    "seed": Count,
    "site": Text,  # what is written: mlp_write, attn_write, resid_post; null when nothing is
    "first_layer": Count,  # receiving layers first_layer..last_layer; null when nothing is written
    "last_layer": Count,
    "from_layer": Count,  # back_patch: the later layer that is read; else null (the layers read are those written)
    "span": Text,  # how the receiving span was chosen: heuristic, random, image_last, image, none
    "span_start": Count,  # first receiving position relative to the first image token; null when none
    "span_length": Count,
    "answer_text": Text,  # null where no answer was written (most of the sweep); then correct is null too
    "correct": Flag,
    "matched_alias": Text,
    "right_logprob": Real,  # log P(right answer | patched prompt), nats, teacher-forced
    "right_logprob_plain": Real,  # the same without a patch
    "donor_entity_id": Text,
    "moved_to_donor": Flag,  # wrong_entity: the answer is the donor's fact; else null
    "moved_plain": Flag,  # wrong_entity: the unpatched answer is that fact already; else null
    "donor_logprob": Real,  # wrong_entity: log P(the donor's answer | patched prompt), nats; else null
    "donor_logprob_plain": Real,  # the same without a patch
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
RESOLUTION = {  # measure_resolution: curves
    "method": Text,  # logit_lens, tuned_lens, patchscope, knockout
    "readout": Text,  # lenses: mean, last, best token; patchscope: place, "place, written"; knockout: name, answer
    "layer": Count,  # as CURVES; for a knockout the output of the window's central layer
    "value": Real,  # share of entities read; knockout: mean loss in nats (name), logits (answer), or rank-1 share
    "low": Real,
    "high": Real,
    "chance": Real,  # the same for every other entity's name
    "logprob": Real,  # mean log P(right name's first token | a name's first token); null where there is none
    "n": Count,  # entities
}
READINGS = {  # measure_resolution: one row per method, readout, layer and entity
    "method": Text,
    "readout": Text,
    "entity_id": Text,
    "layer": Count,
    "value": Real,
    "chance": Real,
    "logprob": Real,
}
DEPTHS = {  # measure_resolution: one row per method and readout, and one per pair of methods
    "method": Text,
    "readout": Text,
    "headline": Flag,  # the readout that speaks for the method
    "versus": Text,  # null; of a pair, the method whose depth is subtracted
    "depth": Real,  # share of the layers; null: nothing is read (p_value)
    "low": Real,
    "high": Real,
    "layer": Count,
    "p_value": Real,  # permutation test that anything is read
    "n": Count,
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
