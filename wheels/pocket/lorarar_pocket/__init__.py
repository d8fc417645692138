"""The miniature base model of lorarar, its judges, example LoRAs and tables; `lorarar.data.shipped` finds them."""
