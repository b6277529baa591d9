# The whole study: `snakemake --cores all`. Steps and files are in docs/architecture.md, every setting in docs/params.md.
from snakemake.utils import min_version

min_version("9.27")


include: "workflow/rules/common.smk"
include: "workflow/rules/dataset.smk"
include: "workflow/rules/models.smk"
include: "workflow/rules/benchmark.smk"
include: "workflow/rules/probes.smk"
include: "workflow/rules/interventions.smk"
include: "workflow/rules/report.smk"


rule all:
    default_target: True
    input:
        "results/render_report/report.html",
        FIGURE_FILES.values(),
        METRICS,
