"""wip"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    data = "/tmp/proto/q"
    return ConfigDict(
        dict(
            run="pretrain",
            seed=0,
            total_steps=800,
            virtual_cores=8,
            pairs_per_core=16,
            batch_norm_cores=8,
            vocabulary=data + "/vocabulary.txt",
            input=dict(
                directory=data + "/train",
                streams=8,
                preprocess=dict(
                    resize=54, image_size=48, flip=False, random_background=True
                ),
            ),
            model=dict(
                image_tower=dict(width=0.5, depth=0.5, drop_rate=0.0),
                text_tower=dict(
                    vocabulary_size=6144,
                    max_tokens=16,
                    layers=2,
                    hidden=128,
                    dropout=0.1,
                    init_std=0.08,
                ),
                temperature_init=0.2,
            ),
            optimizer=dict(learning_rate=1e-2, warmup_steps=50, weight_decay=1e-5),
            loss=dict(label_smoothing=0.1),
            checkpoint=dict(every_steps=100, keep=2),
            log_every_steps=10,
            evaluate_every_steps=200,
            evaluators=dict(
                unseen_drawing=dict(
                    kind="retrieval", directory=data + "/eval", split="unseen_drawing"
                ),
                unseen_concept=dict(
                    kind="retrieval", directory=data + "/eval", split="unseen_concept"
                ),
            ),
        )
    )
