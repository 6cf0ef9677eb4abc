// Writes the descriptors compiled into the Go module k8s.io/cri-api to standard output, as one
// serialised google.protobuf.FileDescriptorProto. The test ../cri_matches_upstream.rs reads it.
package main

import (
	"log"
	"os"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protodesc"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

func main() {
	file := protodesc.ToFileDescriptorProto((&cri.VersionRequest{}).ProtoReflect().Descriptor().ParentFile())
	bytes, err := proto.Marshal(file)
	if err != nil {
		log.Fatalf("serialise the descriptors of %s: %v", file.GetName(), err)
	}
	if _, err := os.Stdout.Write(bytes); err != nil {
		log.Fatalf("write the descriptors of %s: %v", file.GetName(), err)
	}
}
