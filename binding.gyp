{
  "targets": [
    {
      "target_name": "lowrank",
      "type": "none",
      "actions": [
        {
          "action_name": "cmake",
          "inputs": ["CMakeLists.txt"],
          "outputs": ["<(PRODUCT_DIR)/lowrank.node"],
          "action": ["node", "scripts/build.cjs", "--out=<(PRODUCT_DIR)"]
        }
      ]
    }
  ]
}
